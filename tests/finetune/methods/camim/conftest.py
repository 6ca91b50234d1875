"""Fixtures of the tests of CAMIM."""

import pytest

from finetune.tasks.mnre import Mnre


@pytest.fixture
def folder(mnre_folder):
    """With captions beside the rows."""
    task = Mnre(mnre_folder)
    (mnre_folder / "caption").mkdir()
    for split in ("train", "val"):
        lines = [
            repr({"img_id": row.image_id, "text": "and Ann " * (row.row % 9)})
            for row in task.read(split)
        ]
        (mnre_folder / f"caption/caption_{split}.txt").write_text("\n".join(lines))
    return mnre_folder
