"""The objects column's files: what a detector found on each picture of a shard. P: pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.arrays import map_arrays, pack
from shards.files import InputError
from shards.json_files import parse_object
from shards.schema import DetectedObject

AGAIN = "run `python -m shards detect` again"


class Detections(NamedTuple):
    """M objects of P pictures, those of a picture one after the other, best first."""

    best: np.ndarray
    """(P, 4) float64: the best object's box; all 0: none. Training reads no other."""
    ends: np.ndarray
    """(P,) int64: where the objects of each picture end."""
    boxes: np.ndarray
    """(M, 4) float64."""
    scores: np.ndarray
    """(M,) float64."""
    labels: np.ndarray
    """(M,) int32: places in `names`."""
    names: Sequence[str]

    def of(self, picture: int) -> tuple[DetectedObject, ...]:
        """Of one picture."""
        start = int(self.ends[picture - 1]) if picture else 0
        place = slice(start, int(self.ends[picture]))
        values = (self.boxes[place], self.scores[place], self.labels[place])
        return tuple(
            DetectedObject((box[0], box[1], box[2], box[3]), score, self.names[label])
            for box, score, label in zip(*(array.tolist() for array in values), strict=True)
        )


def make_detections(pictures: Sequence[Sequence[DetectedObject]]) -> Detections:
    """The arrays of a shard's objects."""
    objects = [item for one in pictures for item in one]
    names = sorted({item.label for item in objects})
    place = {name: number for number, name in enumerate(names)}
    best = [one[0].box if one else (0.0, 0.0, 0.0, 0.0) for one in pictures]
    return Detections(
        best=np.array(best, np.float64).reshape(-1, 4),
        ends=np.cumsum([len(one) for one in pictures], dtype=np.int64),
        boxes=np.array([item.box for item in objects], np.float64).reshape(-1, 4),
        scores=np.array([item.score for item in objects], np.float64),
        labels=np.array([place[item.label] for item in objects], np.int32),
        names=names,
    )


def pack_detections(pictures: Sequence[Sequence[DetectedObject]]) -> bytes:
    """The file of a shard."""
    fields = make_detections(pictures)._asdict()
    names = fields.pop("names")
    return pack(fields, names)


def map_detections(path: Path, pictures: int) -> Detections:
    """The file of a shard of so many pictures.

    Raises:
        InputError: damaged, or of another shard.
    """
    tensors, names = map_arrays(path)
    if set(tensors) != set(Detections._fields) - {"names"} or not isinstance(names, list):
        raise InputError(f"{path}: no objects; {AGAIN}")
    if len(tensors["best"]) != pictures or len(tensors["ends"]) != pictures:
        raise InputError(f"{path}: not the objects of {pictures} pictures; {AGAIN}")
    return Detections(**tensors, names=names)


def check_detections(path: Path, pictures: int) -> None:
    """Raises: InputError: the file does not hold objects as `DetectedObject` describes them."""
    column = map_detections(path, pictures)
    ends, boxes = column.ends, column.boxes
    values = (column.best, boxes, column.scores)
    starts = np.concatenate([[0], ends[:-1]])
    total = int(ends[-1]) if len(ends) else 0
    first = np.zeros_like(column.best)
    occupied = ends > starts
    good = (
        (ends >= starts).all()
        and {total} == {len(boxes), len(column.scores), len(column.labels)}
        and all(np.isfinite(array).all() for array in values)
        and (boxes[:, :2] < boxes[:, 2:]).all()
        and ((column.labels >= 0) & (column.labels < len(column.names))).all()
    )
    if good:
        first[occupied] = boxes[starts[occupied]]
    if not good or not np.array_equal(first, column.best):
        raise InputError(f"{path}: an object's box, score or label is none; {AGAIN}")


def read_lines_of_objects(path: Path, keys: Sequence[str]) -> Detections:
    """As format 1 has them: a JSON line a sample, checked against the shard's keys."""
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); {AGAIN}") from error
    if len(lines) != len(keys):
        raise InputError(f"{path}: {len(lines)} lines for {len(keys)} samples; {AGAIN}")
    result = []
    for number, (line, key) in enumerate(zip(lines, keys, strict=True), start=1):
        name = f"{path}: line {number}"
        fields = parse_object(line, name)
        objects = fields.get("objects")
        if fields.get("key") != key or not isinstance(objects, list):
            raise InputError(f"{name}: not the objects of {key}; {AGAIN}")
        result.append([DetectedObject.from_dict(item, f"{name}, {key}") for item in objects])
    return make_detections(result)
