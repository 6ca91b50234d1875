"""The part of a stored JPEG that a view shows: no finer than the view, no further down than it.

Most of the time of decoding goes into undoing the Huffman code, which runs from the top row down
and cannot be skipped. Two things can be saved, both without changing a pixel that is used:

* rows below the crop: the frame header of a copy is told a smaller height, so that libjpeg-turbo
  stops there;
* a crop of twice the view's size or more: libjpeg-turbo's own scaled decoding (1/2, 1/4, 1/8),
  which computes fewer pixels from the same coefficients.
"""

import numpy as np
import simplejpeg

REDUCTIONS = (8, 4, 2)
SHORTENED = (0xC0, 0xC1, 0xC2)  # frame headers: baseline, extended, progressive
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
BLOCK_ROWS = 16  # coded together where colour has half the resolution, the usual case
END = b"\xff\xd9"


def reduction_for(width: float, height: float, size: int) -> int:
    """The largest of 8, 4, 2, 1 that leaves a crop of width x height at least size x size."""
    return next((r for r in REDUCTIONS if min(width, height) >= r * size), 1)


def decode_rows(
    content: bytes | bytearray, bottom: int, reduction: int = 1, *, strict: bool = False
) -> np.ndarray:
    """The rows of a JPEG from the top to `bottom`, in full width.

    Args:
        content: RGB or grey JPEG.
        bottom: rows wanted, in pixels of the stored picture.
        reduction: 1, 2, 4 or 8: decode to 1/reduction of the size.
        strict: refuse all that libjpeg-turbo warns of, the rows left over included. Else damage
            may show, even as memory that nothing was written to.

    Returns:
        (H, ceil(width / reduction), 3) uint8; H is at least ceil(bottom / reduction), or the whole
        picture's height. The first of these rows are those of the whole picture, decoded alike.

    Raises:
        ValueError: no JPEG, or one that is cut; in libjpeg-turbo's words where it has any.
    """
    frame = _frame_header(content)
    if content.rfind(END) < frame:  # libjpeg-turbo would fill the missing rows with grey
        raise ValueError("the data end early")
    height, width = (int.from_bytes(content[at : at + 2]) for at in (frame + 5, frame + 7))
    # Rows at the edge of what is decoded see no colour from below: decode beyond them.
    rows = -(-(bottom + 2 * reduction) // BLOCK_ROWS) * BLOCK_ROWS
    if rows < height and content[frame + 1] in SHORTENED:
        shortened = bytearray(content)
        shortened[frame + 5 : frame + 7] = rows.to_bytes(2)
        content, height = shortened, rows
    # At 7/8 of its size a picture is as wide, where that is less than 8: its height counts, too.
    sides = {"min_height": -(-height // reduction), "min_width": -(-width // reduction)}
    return simplejpeg.decode_jpeg(content, "RGB", **sides, min_factor=reduction, strict=strict)


def _frame_header(content: bytes | bytearray) -> int:
    """Where the frame header (SOF) starts; its height and width are at +5 and +7."""
    at = 2
    while at + 9 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker in FRAMES:
            return at
        # 0xFF may be repeated before a marker; all other segments up to here have a length.
        at += 1 if marker == 0xFF else 2 + int.from_bytes(content[at + 2 : at + 4])
    raise ValueError("no JPEG frame header")
