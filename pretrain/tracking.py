"""Metrics of a run: `metrics.jsonl` and TensorBoard, which stay gapless through a resume."""

import json
from pathlib import Path

from shards.schema import atomic_path


class MetricsLog:
    """One JSON line and one TensorBoard scalar per value."""

    def __init__(self, run_dir: Path, *, resume_step: int = 0) -> None:
        """Lines of steps after `resume_step` belong to a run that was cut off; they are dropped."""
        from torch.utils.tensorboard import SummaryWriter

        self.path = run_dir / "metrics.jsonl"
        run_dir.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= resume_step]
            with atomic_path(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        self._file = self.path.open("a", encoding="utf-8")
        self._writer = SummaryWriter(str(run_dir / "tensorboard"), purge_step=resume_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Record values of one step; they are on disk when this returns."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._writer.close()


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a metrics file; a last line cut off by a kill is left out."""
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line.endswith("}")]
