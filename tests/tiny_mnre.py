"""A tiny task folder in MNRE's format."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

RELATIONS = ("None", "/per/per/couple", "/per/org/member_of")
COLORS = {
    "None": (40, 40, 40),
    "/per/per/couple": (230, 30, 30),
    "/per/org/member_of": (30, 30, 230),
}
NAMES = ("Ann", "Bob", "Cid", "Dora", "Eve", "Finn")


def write_mnre(folder: Path, sizes: dict[str, int], seed: int = 0) -> Path:
    """Rows whose relation only the colour of the picture tells."""
    generator = np.random.default_rng(seed)
    shown = {relation: io.BytesIO() for relation in RELATIONS}
    for relation, file in shown.items():
        Image.new("RGB", (20, 16), COLORS[relation]).save(file, "JPEG")
    (folder / "txt").mkdir(parents=True)
    relation2id = {name: i for i, name in enumerate(RELATIONS)}
    (folder / "ours_rel2id.json").write_text(json.dumps(relation2id))
    for split, size in sizes.items():
        pictures = folder / "img_org" / split
        pictures.mkdir(parents=True)
        lines = []
        for row in range(size):
            head, tail = generator.choice(NAMES, 2, replace=False)
            relation = RELATIONS[generator.integers(len(RELATIONS))]
            tokens = ["RT", "@x", ":", str(head), "and", str(tail)]
            tokens += ["tonight"] * int(generator.integers(3))
            (pictures / f"{split}{row}.jpg").write_bytes(shown[relation].getvalue())
            lines.append(
                repr(
                    {
                        "token": tokens,
                        "h": {"name": str(head), "pos": [3, 4]},
                        "t": {"name": str(tail), "pos": [5, 6]},
                        "img_id": f"{split}{row}.jpg",
                        "relation": relation,
                    }
                )
            )
        (folder / "txt" / f"ours_{split}.txt").write_text("\n".join(lines) + "\n")
    return folder
