"""What focal frames cost, on one thread, with the paper's ViT-B/32 (random weights):

    python tests/bench/bench_focalmre.py [STYLE …]

Drawing 7 frames a row on the device and encoding the copies, against encoding 7 plain copies;
alternating, so that other load hits both, in process seconds. Then evaluation of rows of which two
show one picture each, distinct copies encoded once, against all of them.
"""

import statistics
import sys
import time

import torch

from finetune.methods.focalmre.frames import draw
from finetune.methods.towers.encode_once import EncodeOnce
from finetune.methods.towers.pair import named_tower

ROWS, REGIONS, TIMES = 2, 7, 7
TOWER = "vit_base_patch32_clip_quickgelu_224"


def seconds(work) -> float:
    """Process seconds of one call."""
    started = time.process_time()
    work()
    return time.process_time() - started


@torch.inference_mode()
def main(styles: list[str]) -> None:
    """Print medians and ratios."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    tower = named_tower(TOWER, random_weights=True).eval()
    pictures = torch.randint(0, 256, (ROWS, 3, 224, 224), dtype=torch.uint8)
    corners = torch.rand(ROWS, REGIONS, 2) * 0.6
    boxes = torch.cat([corners, corners + 0.1 + torch.rand(ROWS, REGIONS, 2) * 0.3], -1)
    marked = torch.ones(ROWS, REGIONS, dtype=torch.bool)
    colors = torch.tensor([[255, 0, 0]] * REGIONS, dtype=torch.uint8)

    def framed(style: str):
        return draw(pictures, boxes, marked, colors, style=style, width=3).flatten(0, 1)

    plain = pictures.repeat_interleave(REGIONS, dim=0)
    tower(plain)  # warm
    for style in styles:
        taken: dict[str, list[float]] = {"plain": [], "framed": []}
        for _ in range(TIMES):
            taken["plain"].append(seconds(lambda: tower(plain)))
            taken["framed"].append(seconds(lambda style=style: tower(framed(style))))
        plain_time, framed_time = (statistics.median(values) for values in taken.values())
        print(
            f"{style:>8}: 7 plain copies of a row {1000 * plain_time / ROWS:7.1f} ms, "
            f"framed {1000 * framed_time / ROWS:7.1f} ms, ratio {framed_time / plain_time:.3f}"
        )
    # Two rows of one post: the picture is the same, and 5 of the 7 boxes are.
    shared_boxes = boxes[:1].repeat(ROWS, 1, 1)
    shared_boxes[1, 1:3] = boxes[1, 1:3]
    same = pictures[:1].expand(ROWS, -1, -1, -1)
    copies = draw(same, shared_boxes, marked, colors, style="rect", width=3).flatten(0, 1)
    every, once = [], []
    for _ in range(TIMES):
        every.append(seconds(lambda: tower(copies)))
        encoder = EncodeOnce()
        once.append(seconds(lambda encoder=encoder: encoder(tower, copies)))
    every_time, once_time = statistics.median(every), statistics.median(once)
    print(
        f"evaluation of {len(copies)} copies, {encoder.encoded} distinct: all {every_time:.2f} s, "
        f"each once {once_time:.2f} s, ratio {once_time / every_time:.3f}"
    )


if __name__ == "__main__":
    main(sys.argv[1:] or ["rect", "ellipse", "dim", "blur"])
