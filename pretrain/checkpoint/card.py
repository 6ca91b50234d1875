"""Model cards (the README.md of a release), written from what a run recorded."""

import hashlib
import platform
from pathlib import Path
from typing import Any

import torch
import yaml

from pretrain import distributed
from pretrain.checkpoint.run import MARKER
from pretrain.tracking import read_metrics
from shards.index import read_index
from shards.json_files import read_json
from shards.redact import without_secrets
from shards.schema import INDEX_NAME

_LOADING = """\
```python
from pretrain import FusionEncoder

encoder = FusionEncoder.from_pretrained("this directory, or its hub id")
encoder.similarity(["a text", "another"], ["picture.jpg"])
```

Fine-tune: `python -m finetune train --task mnre --method promu --data DIR --out RUN --init THIS`"""

_CITING = """\
- Method: Xuming Hu et al., "Prompt Me Up: Unleashing the Power of Alignments for Multimodal Entity
  and Relation Extraction", ACM Multimedia 2023.
- Text layers start from BERT (Devlin et al., NAACL 2019), the picture tower is a ViT (Dosovitskiy
  et al., ICLR 2021), where the table above says so.
- Name the corpus as its publishers ask: NewsCLIPpings (Luo et al., EMNLP 2021) over VisualNews (Liu
  et al., EMNLP 2021), if that is what the data line names."""

_LICENCE = """\
Code and this card: Apache-2.0. The weights carry the terms of the corpora and of the checkpoints
they were trained from; those of the source checkpoint must be kept when passing them on."""


def card(title: str, sections: dict[str, str], *, loading: str = _LOADING) -> str:
    """A card with the hub's YAML header, how to load, the given sections, licence, citing."""
    header = yaml.safe_dump(
        {
            "library_name": "fusion-mre",
            "license": "apache-2.0",
            "tags": ["multimodal", "relation-extraction", "named-entity-recognition"],
        }
    )
    whole = {"Load": loading, **sections, "Licence": _LICENCE, "Cite": _CITING}
    body = "\n\n".join(f"## {name}\n\n{text}" for name, text in whole.items())
    return without_secrets(f"---\n{header}---\n\n# {title}\n\n{body}\n")


def encoder_card(origin: str) -> str:
    """The card of an encoder of which nothing is known but where it came from."""
    return card("Fusion encoder (text, picture, fusion layers)", {"Origin": origin})


def pretraining_card(
    config: dict[str, Any],
    run_dir: Path,
    *,
    samples_per_epoch: int | str,
    step: int | None = None,
    ran_on: str | None = None,
) -> str:
    """The card of a pre-training run.

    Args:
        config: its resolved configuration. run_dir: holds `metrics.jsonl`.
        samples_per_epoch: pairs of the training shards.
        step: the card is of the checkpoint after this step; None: of the finished run.
        ran_on: the hardware of the run; None: this process was part of it.
    """
    step = config["optim"]["steps"] if step is None else step
    last: dict[str, float] = {}
    for line in read_metrics(run_dir / "metrics.jsonl"):
        if line["step"] <= step:  # later figures are of other weights
            last |= {k: v for k, v in line.items() if k.endswith("_loss") or "val_" in k}
    train, optim, loss = config["data"]["train"], config["optim"], config["loss"]
    objectives = [name for name in ("itm", "cit", "coe", "cir") if loss[name]]
    settings = {
        "data": f"`{train}`, {samples_per_epoch} pairs, index sha256 `{_index_digest(train)}`",
        "steps": step if step == optim["steps"] else f"{step} of {optim['steps']}",
        "objectives (weight)": ", ".join(f"{name} ({loss[name]:g})" for name in objectives),
        "peak learning rate": f"{optim['lr']:g}",
        "weight decay": f"{optim['weight_decay']:g}",
        "precision": config["engine"]["precision"],
        "seed": config["seed"],
        "initialised from": config["model"]["init"] or "random weights",
        "prompter": config["prompter"]["source"] or "none",
        "hardware": ran_on or hardware(),
    }
    losses = {k: v for k, v in last.items() if "val_" not in k}
    validation = {k: v for k, v in last.items() if "val_" in k}
    return card(
        "Fusion encoder, pre-trained with Fusion-MRE",
        {
            "Training": table(settings),
            "Losses at the end": table(losses),
            "Validation": f"Pairs of `{config['data']['val']}`; no figure here chose a checkpoint: "
            "it is that of the last step. Recall is over the matched pairs of that sample.\n\n"
            + table(validation),
        },
    )


def checkpoint_card(step: Path) -> str | None:
    """The card of a run as it stood at `checkpoints/step-N`; None where it kept no record."""
    run_dir = step.resolve().parents[1]
    if not (run_dir / "config.yaml").is_file() or not (run_dir / "metrics.jsonl").is_file():
        return None
    config = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    marker = step / MARKER
    marked = read_json(marker) if marker.is_file() else {}
    index = Path(config["data"]["train"]) / INDEX_NAME
    return pretraining_card(
        config,
        run_dir,
        samples_per_epoch=read_index(index.parent).samples if index.is_file() else "unknown",
        step=int(step.name.removeprefix("step-")),
        ran_on=f"world size {marked.get('world_size', 'unknown')}, devices not recorded",
    )


def conversion_card(facts: dict[str, Any], notes: list[str]) -> str:
    """The card of a converted checkpoint: what it was, and what was left out or drawn."""
    listed = "\n".join(f"- {note}" for note in notes) or "- nothing left out or resized"
    return card(
        "Fusion encoder, converted with Fusion-MRE",
        {"Converted from": f"{table(facts)}\n\n{listed}"},
    )


def table(values: dict[str, Any]) -> str:
    """A two-column Markdown table; floats with four significant digits."""
    rows = [
        f"| {name} | {f'{value:.4g}' if isinstance(value, float) else value} |"
        for name, value in values.items()
    ]
    return "\n".join(["| | |", "|---|---|", *rows])


def hardware() -> str:
    """Where this process runs, for example `8 x NVIDIA H200, torch 2.15.0`."""
    name = (
        torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU"
    )
    return f"{distributed.world_size()} x {name}, torch {torch.__version__}"


def _index_digest(location: str) -> str:
    path = Path(location) / INDEX_NAME
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "unknown (remote)"
