"""The picture panel of a validation: what the prompter says about a picture, and the student."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from pretrain.data.batch import PretrainBatch

SIDE, TEXT = 224, 300


def draw_panel(
    batch: PretrainBatch, columns: dict[str, Tensor], vocabularies: dict[str, Sequence[str]]
) -> np.ndarray:
    """Rows of picture, best object's box, and top classes of prompter and student.

    Args:
        batch: the first pairs of the validation sample.
        columns: of `Validator.columns`, of at least these pairs.
        vocabularies: `object` and `relation` -> names of classes, as far as there is such a head.

    Returns:
        (rows · 224, width, 3) uint8.
    """
    rows = []
    for number in range(len(batch)):
        row = Image.new("RGB", (SIDE + TEXT, SIDE), "white")
        pixels = batch.pixel_values[number].permute(1, 2, 0).numpy()
        zoom = SIDE / pixels.shape[0]  # boxes are of the view, whose side is a setting
        row.paste(Image.fromarray(pixels).resize((SIDE, SIDE)))
        draw = ImageDraw.Draw(row)
        if batch.patch_weights[number].any():
            draw.rectangle(
                [float(x) * zoom for x in batch.require("box")[number]], outline="red", width=2
            )
        lines = [batch.keys[number], "matched" if batch.matched[number] else "mismatched"]
        for kind, names in vocabularies.items():
            for who, letter in (("prompter", "q"), ("student", "p")):
                shares = columns[f"{kind}_{letter}"][number].tolist()
                classes = columns[f"{kind}_{letter}_class"][number].tolist()
                top = zip(shares, classes, strict=True)
                lines += [f"{kind}, {who}:", *(f"   {s:.2f} {names[c]}" for s, c in top)]
        draw.multiline_text((SIDE + 8, 4), "\n".join(lines), fill="black", font_size=11, spacing=1)
        rows.append(np.asarray(row))
    return np.concatenate(rows)
