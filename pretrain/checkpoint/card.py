"""Model cards, written from what a run recorded."""

import platform
from pathlib import Path
from typing import Any

import torch
import yaml

from pretrain.tracking import read_metrics
from shards.schema import INDEX_NAME, read_index


def pretraining_card(config: dict[str, Any], run_dir: Path, *, samples_per_epoch: int) -> str:
    """The README.md of a pre-trained model directory (Markdown with the hub's YAML header)."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    last: dict[str, float] = {}
    for line in lines:
        last |= {key: value for key, value in line.items() if key.endswith("_loss") or "val_" in key}
    figures = "\n".join(f"| {name} | {value:.4g} |" for name, value in sorted(last.items()))
    train = config["data"]["train"]
    digest = _index_digest(train)
    header = yaml.safe_dump(
        {"library_name": "fusion-mre", "license": "apache-2.0", "tags": ["multimodal", "relation-extraction"]}
    )
    return f"""---
{header}---

# Fusion encoder, pre-trained with Fusion-MRE

Text tower, vision tower and fusion layers after PROMU (Hu et al., "Prompt Me Up", MM 2023).

```python
from pretrain.model.fusion_encoder import FusionEncoder
encoder = FusionEncoder.from_pretrained("this directory or hub id")
```

Fine-tune: `python -m finetune train --task mnre --method promu --data DIR --out RUN --init THIS`

## Training

- data: `{train}` ({samples_per_epoch} pairs, index sha256 {digest})
- steps: {config["optim"]["steps"]}, objectives: {", ".join(k for k in ("itm", "cit", "coe", "cir") if config["loss"][k])}
- prompter: {config["prompter"]["source"]}
- hardware: {torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine() + " CPU"}, torch {torch.__version__}

| last value of | |
|---|---|
{figures}

Validation pairs come from `{config["data"]["val"]}`; recall is over matched pairs of that sample.

## Licence

Code and this card: Apache-2.0. The weights carry the terms of the corpora they were trained on.
"""


def _index_digest(location: str) -> str:
    import hashlib

    path = Path(location) / INDEX_NAME
    if not path.is_file():
        return "unknown (remote)"
    read_index(location)
    return hashlib.sha256(path.read_bytes()).hexdigest()
