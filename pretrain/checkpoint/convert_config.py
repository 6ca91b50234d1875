"""Options of `python -m pretrain convert`; nothing here imports torch."""

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import ClassVar, Literal

from pretrain.model.config import Layout
from shards.options import positive

KINDS = ("deepspeed", "promu", "alpro", "text+vision", "model", "clip", "two-tower")
"""Of checkpoints that are no fine-tuned one."""


def fine_tuned() -> dict[str, EntryPoint]:
    """Readers of other projects' fine-tuned checkpoints; `finetune` registers them, because
    nothing here imports it."""
    return {entry.name: entry for entry in entry_points(group="fusion_mre.converters")}


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """Convert a checkpoint into a model directory, or a model directory back out."""

    POSITIONAL: ClassVar = ("source", "out")
    ALIASES: ClassVar = {"from": "kind", "to": "target"}
    source: str
    """File, run, checkpoint, directory, hub id or fsspec URL."""
    out: str
    """Directory, file for --to promu, or fsspec URL."""
    kind: str = "auto"
    """Or --from: what SOURCE is: auto (found out), deepspeed, promu, alpro, text+vision, model,
    clip (copied, as a teacher), two-tower (a CLIP, SigLIP or open_clip's
    files, as first weights);
    fine-tuned: camim, hvpnet, mkgformer, tmr."""
    target: Literal["model", "promu", "bert", "timm"] = "model"
    """Or --to: model directory; the authors' layout; a tower alone."""
    vision: str | None = None
    """timm name or directory of the picture backbone for a text encoder or ALPRO."""
    tokenizer: str = "bert-base-uncased"
    """Tokenizer of a file that has none; for a fine-tuned one its whole BERT directory or id."""
    text_layers: int | None = None
    """Where a BERT is cut: layers that read the text alone; none: half of them."""
    encoder_layout: Layout = "split"
    """For a BERT: one cut in two, a copy for fusion, or the same layers again."""
    fusion_layers: int | None = None
    """New fusion layers over a text encoder that is not cut (DeBERTa, ModernBERT, …); none: 6."""
    part: Literal["student", "prompter", "prompter_image", "prompter_obj"] = "student"
    """For promu: the student, a stage-1 file as prompter, or a teacher inside the student."""
    labels: str | None = None
    """For a fine-tuned relation model: its ours_rel2id.json."""
    image_size: int | None = None
    """Resize the position table for pictures of so many pixels a side."""
    seed: int = 0
    """Of what no source has (projections)."""

    def __post_init__(self) -> None:
        positive(image_size=self.image_size)
        if self.kind == "bert+vit":  # its name before other families were read
            object.__setattr__(self, "kind", "text+vision")
        kinds = ("auto", *KINDS, *sorted(fine_tuned()))
        if self.kind not in kinds:
            raise ValueError(f"--from {self.kind}: there are {', '.join(kinds)}")
