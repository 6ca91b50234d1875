"""Writes the objects column: the boxes that a detector finds on every stored picture.

Detectors: `yolo` (ultralytics, in a process of its own), `torchvision` (Faster R-CNN), and `file`
(boxes that somebody else detected, as JSON lines).
"""

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

from PIL import Image

from shards.boxes import FileDetector
from shards.columns import write_column
from shards.command import Tool
from shards.detections import pack_detections
from shards.files import InputError, file_sha256
from shards.images import by_size
from shards.options import positive
from shards.schema import OBJECTS, DetectedObject
from shards.shard import Picture
from shards.stream import ShardReader
from shards.yolo import YoloDetector

SHOWN = "beside pictures of its size"
"""To a network; a column that does not say so was made beside any, and may have other boxes."""


class Detector(Protocol):
    """Finds objects on stored pictures."""

    provenance: dict[str, Any]
    """What the boxes depend on: weights, versions, thresholds."""

    def detect(self, pictures: Sequence[Picture]) -> list[list[DetectedObject]]:
        """Boxes of each picture in absolute pixels of its stored picture, in any order.

        They may leave the picture, and score too little: `run` cuts and selects.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """Write the objects column: the boxes that a detector finds on every stored picture."""

    POSITIONAL: ClassVar = ("shards",)
    shards: Path
    """Shard directory."""
    detector: Literal["yolo", "torchvision", "file"] = "yolo"
    """file: boxes that somebody else detected."""
    weights: str | None = None
    """Of yolo: a name, or a file .pt, .onnx, .tflite or .yaml (default: yolo11n.pt). Of
    torchvision: a name, which is downloaded (default: COCO_V1), or a file."""
    boxes: Path | None = None
    """Of file: JSON lines image_id, objects, size, upright."""
    keep: int = 5
    """Boxes per picture, the best ones."""
    min_score: float = 0.25
    """Boxes of less are dropped."""
    select: Literal["max_score", "max_area"] = "max_score"
    """What makes a box the best one."""
    batch: int = 16
    """Pictures at a time."""
    device: str = "cpu"
    """Of yolo, torchvision."""

    def __post_init__(self) -> None:
        positive(keep=self.keep, batch=self.batch)
        if not 0 <= self.min_score <= 1:
            raise InputError(f"--min-score {self.min_score}: between 0 and 1")
        for name, unread in (
            ("boxes", self.detector != "file"),
            ("weights", self.detector == "file"),
        ):
            if unread and getattr(self, name) is not None:
                raise InputError(f"--{name}: --detector {self.detector} reads none")


def detect(config: DetectConfig) -> None:
    """Write the column, shard by shard."""
    reader = ShardReader(config.shards)
    detector = DETECTORS[config.detector](config)
    provenance = detector.provenance | {
        "detector": config.detector,
        "keep": config.keep,
        "min_score": config.min_score,
        "select": config.select,
    }
    looked = with_objects = 0
    if isinstance(detector, FileDetector):
        detector.require_match(reader)  # else the column would say that nothing is in any picture
    index = reader.index
    print(
        f"detect: {index.pictures:,} pictures of {index.samples:,} pairs in {len(index.shards):,} "
        f"shards by {config.detector} on {config.device}; writes {config.shards / OBJECTS}",
        flush=True,
    )

    def compute(shard: int) -> bytes:
        nonlocal looked, with_objects
        best = []
        for pictures in batched(reader.pictures(shard), config.batch):
            for picture, objects in zip(pictures, detector.detect(pictures), strict=True):
                inside = clipped(objects, picture.meta.size)
                best.append(select(inside, config.keep, config.min_score, config.select))
        looked += len(best)
        with_objects += sum(map(bool, best))
        return pack_detections(best)

    def files(numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        yield from ((number, compute(number)) for number in numbers)

    write_column(config.shards, OBJECTS, files, provenance, desc="detect")
    if isinstance(detector, FileDetector) and looked == index.pictures:
        detector.tell(looked)  # a resumed run has not seen all
    print(
        f"{config.shards}: objects column complete; {with_objects} of {looked} new pictures have "
        "objects"
    )


def batched(pictures: Iterable[Picture], size: int) -> Iterator[list[Picture]]:
    """So many at a time."""
    rest = iter(pictures)
    while batch := list(islice(rest, size)):
        yield batch


def select(
    objects: Sequence[DetectedObject], keep: int, min_score: float, by: str
) -> list[DetectedObject]:
    """The best `keep` objects of at least `min_score`, best first; ties by position."""

    def rank(item: DetectedObject) -> tuple:
        x1, y1, x2, y2 = item.box
        value = item.score if by == "max_score" else (x2 - x1) * (y2 - y1)
        return (-value, item.box, item.label)

    return sorted((item for item in objects if item.score >= min_score), key=rank)[:keep]


def clipped(objects: Sequence[DetectedObject], size: tuple[int, int]) -> list[DetectedObject]:
    """The objects with their boxes cut at the picture's border; those outside it are gone."""
    cut = [(clip(item.box, size), item) for item in objects]
    return [DetectedObject(box, round(item.score, 4), item.label) for box, item in cut if box]


def clip(box: Sequence[float], size: tuple[int, int]) -> tuple[float, float, float, float] | None:
    """A box cut at the picture's border, rounded to 1/100 pixel; None if nothing is left."""
    xs = [round(min(max(x, 0.0), size[0]), 2) for x in (box[0], box[2])]
    ys = [round(min(max(y, 0.0), size[1]), 2) for y in (box[1], box[3])]
    return (xs[0], ys[0], xs[1], ys[1]) if xs[0] < xs[1] and ys[0] < ys[1] else None


class FasterRCNN:
    """torchvision's `fasterrcnn_resnet50_fpn_v2` with COCO's 91 classes."""

    def __init__(
        self, weights: str, device: str = "cpu", min_score: float = 0.05, option: str = "--weights"
    ) -> None:
        """
        Args:
            weights: name of torchvision weights, or a file that holds their state dict.
            option: what named them, for the error.
        """
        self.model, self.labels = faster_rcnn(weights, min_score, option)
        self.model.eval().to(device)
        self.device = device

    def __call__(self, pictures: Sequence[Image.Image]) -> list[list[DetectedObject]]:
        """Of each RGB picture, best first, in its absolute pixels; boxes may leave it."""
        import torch
        from torchvision.transforms.functional import pil_to_tensor

        results: list[Any] = [None] * len(pictures)
        for group in by_size(pictures):
            tensors = [pil_to_tensor(pictures[place]).to(self.device) / 255 for place in group]
            with torch.inference_mode():
                for place, result in zip(group, self.model(tensors), strict=True):
                    results[place] = result
        return [
            [
                DetectedObject(tuple(box), score, self.labels[label])
                for box, score, label in zip(
                    *(result[name].tolist() for name in ("boxes", "scores", "labels")), strict=True
                )
            ]
            for result in results
        ]


class TorchvisionDetector:
    """Faster R-CNN."""

    def __init__(self, config: DetectConfig) -> None:
        import torchvision

        weights = config.weights or "COCO_V1"
        self.find = FasterRCNN(weights, config.device, config.min_score)
        file = Path(weights)
        self.provenance = {
            "model": "fasterrcnn_resnet50_fpn_v2",
            "weights": file_sha256(file) if file.is_file() else weights,
            "torchvision": torchvision.__version__,
            "batch": config.batch,
            "shown": SHOWN,
        }

    def detect(self, pictures: Sequence[Picture]) -> list[list[DetectedObject]]:
        """See `Detector`."""
        return self.find(
            [Image.open(io.BytesIO(picture.image)).convert("RGB") for picture in pictures]
        )


def faster_rcnn(
    weights: str, min_score: float, option: str = "--weights"
) -> tuple[Any, Sequence[str]]:
    """The model and its class names; arguments as of `FasterRCNN`.

    Raises:
        InputError: neither a name nor a file, or one that cannot be loaded.
    """
    import torch
    from torchvision.models import detection

    published = detection.FasterRCNN_ResNet50_FPN_V2_Weights
    model = detection.fasterrcnn_resnet50_fpn_v2(
        weights=None, weights_backbone=None, num_classes=91, box_score_thresh=min_score
    )
    try:
        if Path(weights).is_file():
            state = torch.load(weights, map_location="cpu", weights_only=True)
        else:
            state = published[weights].get_state_dict(progress=True, check_hash=True)
        model.load_state_dict(state)
    except KeyError as error:
        raise InputError(f"{option} {weights}: neither a file nor torchvision weights") from error
    except Exception as error:  # network, pickle and shape errors have no common ancestor
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{option} {weights}: cannot be loaded ({reason})") from error
    return model, published.COCO_V1.meta["categories"]


class Yolo:
    """ultralytics, behind a pipe; see `shards.yolo`."""

    def __init__(self, config: DetectConfig) -> None:
        self.process = YoloDetector(config.weights or "yolo11n.pt", config.device, config.min_score)
        self.provenance = self.process.provenance | {"batch": config.batch, "shown": SHOWN}

    def detect(self, pictures: Sequence[Picture]) -> list[list[DetectedObject]]:
        """See `Detector`."""
        return self.process.detect([picture.image for picture in pictures])


DETECTORS: dict[str, Callable[[DetectConfig], Detector]] = {
    "yolo": Yolo,
    "torchvision": TorchvisionDetector,
    "file": lambda config: FileDetector(config.boxes),
}
DETECT = Tool(DetectConfig, detect, "shards/train --detector torchvision")
