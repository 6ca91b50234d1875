"""YOLO boxes from ultralytics: the only file that imports it, and only in a process of its own.

The process keeps ultralytics' side effects (settings files, patched `torch.save`, a barrier at
import, text on stdout) away from us, and our code and shards free of its licence (AGPL-3.0).
`python -m shards.yolo` is that process: pictures come in and boxes go out through pipes.
"""

import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from shards.files import InputError
from shards.images import by_size
from shards.schema import DetectedObject


class YoloDetector:
    """The side of the pipe that asks; see `shards.objects.Detector`."""

    def __init__(self, weights: str, device: str, min_score: float) -> None:
        """
        Args:
            weights: a `.pt` file; a name that ultralytics knows and downloads; or a `.yaml`,
                which gives that architecture with random weights, to try the wiring.
        """
        self.weights = weights
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - lives as long as the process
        local = Path(weights).is_file()
        command = [sys.executable, "-m", "shards.yolo", device, str(min_score)]
        self.process = subprocess.Popen(
            [*command, str(Path(weights).resolve()) if local else weights],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=_environment(offline=local or weights.endswith(".yaml")),
            cwd=_folder(),
        )
        assert self.process.stdin and self.process.stdout
        self.stdin, self.stdout = self.process.stdin, self.process.stdout
        self.provenance: dict[str, Any] = self._answer()

    def detect(self, images: Sequence[bytes]) -> list[list[DetectedObject]]:
        """Boxes of JPEG pictures, in their pixels."""
        try:
            self.stdin.write(json.dumps([len(image) for image in images]).encode() + b"\n")
            self.stdin.write(b"".join(images))
            self.stdin.flush()
        except BrokenPipeError:
            pass  # the answer, or its lack, says why
        return [
            [DetectedObject(tuple(box), score, label) for box, score, label in boxes]
            for boxes in self._answer()
        ]

    def _answer(self) -> Any:
        line = self.stdout.readline()
        if line:
            return json.loads(line)
        self.process.wait()
        self.log.seek(0)
        last = [text for text in self.log.read().splitlines() if text.strip()][-1:]
        raise InputError(
            f"YOLO ({self.weights}) failed: {' '.join(last)}; give --weights a file, or use "
            "--detector torchvision or file"
        )


def _folder() -> Path:
    """Where ultralytics may write: downloaded weights, settings."""
    folder = Path("~/.cache/fusion-mre/yolo").expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _environment(offline: bool) -> dict[str, str]:
    """No probe of the network, no statistics sent, no pip, no pickled code, our own settings."""
    root = str(Path(__file__).resolve().parents[1])
    settings = {
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "YOLO_CONFIG_DIR": str(_folder()),
        "YOLO_AUTOINSTALL": "False",
        "ULTRALYTICS_SAFE_LOAD": "1",
        "YOLO_OFFLINE": "1" if offline else "0",
    }
    # A process group of ours is none of its business: it would wait for other ranks.
    inherited = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK")}
    return inherited | settings


def main() -> None:
    """The side that answers, until its input ends."""
    device, min_score, weights = sys.argv[1:]
    # The pipe is for answers alone: whatever the library prints goes to the log.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    model, version = _load(weights)
    about = {"model": Path(weights).name, "ultralytics": version}
    checkpoint = Path(str(getattr(model, "ckpt_path", None) or ""))
    if checkpoint.is_file():
        about["sha256"] = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    print(json.dumps(about), file=answers, flush=True)
    while images := _read_images(sys.stdin.buffer):
        answer: list[Any] = [None] * len(images)
        for group in by_size(images):
            alike = [images[place] for place in group]
            results = model.predict(alike, conf=float(min_score), device=device, verbose=False)
            for place, result in zip(group, results, strict=True):
                values = (getattr(result.boxes, name).tolist() for name in ("xyxy", "conf", "cls"))
                answer[place] = [
                    (box, score, result.names[int(label)])
                    for box, score, label in zip(*values, strict=True)
                ]
        print(json.dumps(answer), file=answers, flush=True)


def _load(weights: str) -> tuple[Any, str]:
    try:
        import torch
        import ultralytics
    except ImportError as error:
        sys.exit(f"{error}; pip install 'fusion-mre[yolo]'")
    ultralytics.SETTINGS["sync"] = False
    torch.manual_seed(0)  # random weights, of a .yaml, must not differ between runs
    return ultralytics.YOLO(weights), ultralytics.__version__


def _read_images(file: BinaryIO) -> list[Any]:
    from PIL import Image

    sizes = json.loads(file.readline() or "[]")
    return [Image.open(io.BytesIO(file.read(size))).convert("RGB") for size in sizes]


if __name__ == "__main__":
    main()
