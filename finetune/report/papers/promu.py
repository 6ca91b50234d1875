"""What a run's fusion layers made of texts and pictures, for PROMU's Figure 3.

The paper draws 50 test samples: entity beside object, relation beside image, "after modality
fusion". Read here as: the state of an entity's first piece; the mean over the patches under its
picture's best detected box; the mean state of the two opening markers; the picture's state as the
encoder pools it. N: rows, D: hidden size, K: patches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune.inputs.batch import Batch
from finetune.inputs.split import LoadedSplit
from finetune.methods.layers import entity_states
from finetune.run.open_run import open_run
from finetune.tasks import side_files
from finetune.tasks.metrics import entities
from finetune.tasks.region_cache import Regions, read_regions
from finetune.tasks.splits import BY_OPTION
from pretrain import distributed
from pretrain.model.fusion_encoder import FusionEncoder
from shards.files import InputError

CHUNK = 50


@dataclass(frozen=True)
class Pairs:
    """Two kinds of states, row by row."""

    names: tuple[str, str]
    first: np.ndarray
    """(N, D) float32, of the text."""
    second: np.ndarray
    """(N, D) float32, of the picture."""

    def cosines(self) -> tuple[float, float]:
        """Mean cosine of the two of a row, and of those of different rows."""
        unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (self.first, self.second)]
        table = unit[0] @ unit[1].T
        others = table[~np.eye(len(table), dtype=bool)]
        return float(table.diagonal().mean()), float(others.mean())

    def flat(self, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Two (N, 2): t-SNE of all states together.

        Raises:
            InputError: scikit-learn is not installed.
        """
        try:
            from sklearn.manifold import TSNE
        except ImportError:
            raise InputError(
                "t-SNE needs scikit-learn: pip install 'fusion-mre[figures]'"
            ) from None
        states = np.concatenate([self.first, self.second])
        perplexity = min(30.0, (len(states) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init="pca", random_state=seed).fit_transform(states)
        return plane[: len(self.first)], plane[len(self.first) :]


def panels(pairs_shown: Sequence[Pairs], seed: int = 0) -> list[dict[str, Any]]:
    """As `figures.states` draws them, with the cosines below each.

    Raises:
        InputError: scikit-learn is not installed.
    """
    drawings = []
    for pairs in pairs_shown:
        own, others = pairs.cosines()
        note = f"cosine: own pair {own:.2f}, others {others:.2f}"
        drawings.append({"names": pairs.names, "points": pairs.flat(seed), "note": note})
    return drawings


@torch.inference_mode()
def collect(
    run: str, data: Path, split: str, number: int, regions: Path | None, seed: int = 0
) -> list[Pairs]:
    """The states of `number` rows of a split, drawn among those that have all that is shown.

    Args:
        regions: folder of a region cache with `regions_od.jsonl`: adds entity and object.

    Raises:
        InputError: a run without fusion layers or pictures, or too few rows.
    """
    opened = open_run(run)
    method, inputs, encoder = opened.method, opened.description.inputs, opened.method.encoder
    if not isinstance(encoder, FusionEncoder) or "image" not in method.needs:
        raise InputError(
            f"{run}: {opened.description.method} has no fusion layers that read text and picture "
            "together; give a run of promu"
        )
    if inputs["images"] != "required":
        raise InputError(f"{run}: was trained with --images {inputs['images']}: it sees no picture")
    relation = opened.description.task.kind == "relation"
    # Without a relation nothing is left to stand beside the whole picture.
    if regions is None and not relation:
        raise InputError(
            "entities are shown beside objects: give --regions DIR with regions_od.jsonl "
            "(python -m finetune regions build)"
        )
    _, loaded = opened.load(data, BY_OPTION[split])
    boxes: Mapping[str, Regions] | None = None
    if regions is not None:
        boxes = read_regions(side_files.find(regions, "regions_od.jsonl", BY_OPTION[split])).values
    rows = drawn(loaded, relation, boxes, number, seed)
    parts = [
        read(encoder, loaded, rows[start : start + CHUNK], relation, boxes)
        for start in range(0, len(rows), CHUNK)
    ]
    return [
        Pairs(names, *(np.concatenate([part[names][side] for part in parts]) for side in (0, 1)))
        for names in parts[0]
    ]


def drawn(
    loaded: LoadedSplit, relation: bool, boxes: Mapping[str, Regions] | None, number: int, seed: int
) -> np.ndarray:
    """Positions of rows with a picture, and, where objects are shown, an object and an entity."""
    good = [
        i
        for i, row in enumerate(loaded.rows)
        if row.image_id is not None
        and (boxes is None or (row.image_id in boxes and boxes[row.image_id].regions))
        and (
            relation
            or first_word(loaded.gold[i], loaded.dataset.columns["word_starts"][i]) is not None
        )
    ]
    if len(good) < 3:
        raise InputError(f"only {len(good)} rows have all that is to be shown; 3 are the least")
    return np.sort(np.random.default_rng(seed).permutation(good)[:number])


def read(
    encoder: FusionEncoder,
    loaded: LoadedSplit,
    rows: np.ndarray,
    relation: bool,
    boxes: Mapping[str, Regions] | None,
) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    """Names -> the two states of each of these rows."""
    batch = loaded.dataset.collate(rows).to(distributed.device())
    fused = encoder(
        batch.pixel_values, batch.input_ids, batch.attention_mask, batch.image_mask
    ).fused_embeds.float()
    length = batch.input_ids.shape[1]
    text, picture = fused[:, :length], fused[:, length:]
    result = {}
    if boxes:
        regions = [boxes[loaded.rows[i].image_id] for i in rows]
        objects = torch.stack([under(p[1:], r) for p, r in zip(picture, regions, strict=True)])
        result["entity", "object"] = first_entity(text, batch, loaded, rows, relation), objects
    if relation:
        starts = batch.require("head_start"), batch.require("tail_start")
        both = entity_states(text, *starts).unflatten(-1, (2, -1))
        pooled = picture[:, 0] if encoder.config.vision_pool == "cls" else picture[:, 1:].mean(1)
        result["relation", "image"] = both.mean(dim=1), pooled
    return {names: (a.cpu().numpy(), b.cpu().numpy()) for names, (a, b) in result.items()}


def first_entity(
    text: Tensor, batch: Batch, loaded: LoadedSplit, rows: np.ndarray, relation: bool
) -> Tensor:
    """(N, L, D) -> (N, D): the head's marker, or the first piece of the first gold entity read."""
    place = torch.arange(len(text), device=text.device)
    if relation:
        return text[place, batch.require("head_start")]
    starts = batch.require("word_starts")
    words = [first_word(loaded.gold[i], own) for i, own in zip(rows, starts.tolist(), strict=True)]
    return text[place, starts[place, torch.tensor(words, device=text.device)]]


def first_word(tags: Sequence[str], starts: Any) -> int | None:
    """Of the first entity that the model reads, which begins neither beyond --max_length nor with a
    word that has no piece (0)."""
    words = (first for _, first, _ in entities(tags))
    return next((word for word in words if word < len(starts) and starts[word]), None)


def under(patches: Tensor, regions: Any) -> Tensor:
    """(K, D) -> (D,): mean over the patches whose middle lies in the best box, or the nearest."""
    side = round(len(patches) ** 0.5)
    middles = (torch.arange(side, device=patches.device) + 0.5) / side
    width, height = regions.size
    best = max(regions.regions, key=lambda region: region.score)
    left, top, right, bottom = np.divide(best.box, (width, height, width, height))
    x = (middles - (left + right) / 2).abs()
    y = (middles - (top + bottom) / 2).abs()
    inside_x = x <= max((right - left) / 2, float(x.min()))
    inside_y = y <= max((bottom - top) / 2, float(y.min()))
    return patches.unflatten(0, (side, side))[inside_y][:, inside_x].flatten(0, 1).mean(dim=0)
