"""TMR's parts: what the sources show, cross attention into the texts, and their fusion.

B: rows, L: word pieces, P: positions of a picture's last map, R: regions, C: its channels,
D: hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.methods.layers import attend
from finetune.methods.towers.resnet import ResNetPyramid

See = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Look:
    """What a source shows."""

    whole: Tensor
    """(B, P, C)"""
    seen: Tensor
    """(B,) bool: there is a picture"""
    regions: Tensor | None = None
    """(B, R, P, C)"""
    regions_seen: Tensor | None = None
    """(B, R) bool"""


@dataclass(frozen=True)
class Streams:
    """What a source brings to the fusion: rows that ask, and shortcuts past what they are told."""

    whole: Tensor
    """(B, Q, D)"""
    whole_counted: Tensor | None
    """(B, Q) bool; None: all rows count"""
    objects: Tensor | None
    """(B, R, D); None: no regions"""
    objects_counted: Tensor | None
    """(B, R) bool"""
    shortcuts: tuple[Tensor | None, Tensor | None]
    """(B, D) of the whole picture, and of its regions"""
    scores: Tensor
    """(B, 2) [weak, strong]: weights of the regions, and of the whole picture"""


class CrossPooling(nn.Module):
    """Rows attend to a text and are pooled: Σ tanh(softmax(QKᵀ/√D) V); no residual connection."""

    def __init__(self, size: int, mean: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.mean = mean

    def forward(
        self, rows: list[tuple[Tensor, Tensor | None]], states: Tensor, mask: Tensor | None
    ) -> list[Tensor]:
        """One (B, D) for each of `rows`; the text's keys and values are made once for all.

        Args:
            rows: pairs of (B, Q, D) and (B, Q) bool, False = not pooled; None: all are.
            states: (B, L, D). mask: (B, L) bool or None.
        """
        if not rows:
            return []
        key, value = self.key(states), self.value(states)
        mask = None if mask is None else mask[:, None, :]
        return [
            pooled(torch.tanh(attend(self.query(queries), key, value, mask)), counted, self.mean)
            for queries, counted in rows
        ]


class SourceFusion(nn.Module):
    """Weighs what the sources show by their scores: what relations and entities share."""

    def __init__(self, size: int, *, regions: bool, mean: bool) -> None:
        """
        Args:
            regions: there are some, which ask the phrases.
            mean: pool by mean, not by sum.
        """
        super().__init__()
        self.fine = CrossPooling(size, mean)
        self.coarse = CrossPooling(size, mean) if regions else None

    def fused(
        self,
        streams: list[Streams],
        text: Tensor,
        text_mask: Tensor | None,
        phrases: Tensor,
        phrase_mask: Tensor | None,
    ) -> list[Tensor]:
        """(B, D) of each source: whole pictures ask the sentence, regions the phrases."""
        asked = [(source.whole, source.whole_counted) for source in streams]
        fine = self.fine(asked, text, text_mask)
        of_objects = [(s.objects, s.objects_counted) for s in streams if s.objects is not None]
        coarse = iter(())
        if of_objects and self.coarse is not None:
            coarse = iter(self.coarse(of_objects, phrases, phrase_mask))
        fused = []
        for source, whole in zip(streams, fine, strict=True):
            for_whole, for_objects = source.shortcuts
            mixed = plus(whole, for_whole) * source.scores[:, 1:]
            if source.objects is not None:
                mixed = mixed + plus(next(coarse), for_objects) * source.scores[:, :1]
            fused.append(mixed)
        return fused


class TmrHead(SourceFusion):
    """Fuses the sources by their scores and classifies relations."""

    def __init__(
        self,
        size: int,
        labels: int,
        *,
        sources: int,
        regions: bool,
        mean: bool,
        extended: bool,
        dropout: float,
    ) -> None:
        """
        Args:
            regions, mean: as for `SourceFusion`.
            extended: further layers for sources and phrases (v2).
        """
        super().__init__(size, regions=regions, mean=mean)
        self.sources = sources
        self.extend = nn.Linear(size, size) if extended else None
        self.phrase = nn.Linear(size, 2 * size) if extended else None
        phrase_size = 2 * size if extended else size
        self.final = nn.Linear(2 * size + phrase_size + sources * size, 2 * size)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(2 * size, labels)

    def features(
        self,
        streams: list[Streams],
        text: Tensor,
        text_mask: Tensor | None,
        phrases: Tensor,
        phrase_mask: Tensor | None,
    ) -> list[Tensor]:
        """The sources' features p (B, D)."""
        fused = self.fused(streams, text, text_mask, phrases, phrase_mask)
        return fused if self.extend is None else [torch.tanh(self.extend(one)) for one in fused]

    def final_feature(self, pair: Tensor, phrases: Tensor, features: list[Tensor]) -> Tensor:
        """F (B, 2D) from the entities (B, 2D), Σ of the phrases' states (B, D) and p's (B, D)."""
        phrases = phrases if self.phrase is None else self.phrase(phrases)
        missing = self.sources - len(features)  # vision is off
        features = features + [torch.zeros_like(pair[:, : pair.shape[1] // 2])] * missing
        return self.final(self.dropout(torch.cat([pair, phrases, *features], dim=-1)))

    def classify(self, final: Tensor) -> Tensor:
        """Logits (B, labels), float32."""
        return self.classifier(self.dropout(final)).float()


def look(
    vision: ResNetPyramid, batch: Batch, see: See, *, generated: bool, bgr255: bool, one_pass: bool
) -> list[Look]:
    """What the sources show; all pictures go through the vision tower together.

    Absent pictures are zeros after normalisation: the mean colour.

    Args:
        see: (N, 3, S, S) -> `vision`'s last map.
        generated: the batch holds generated pictures: the second source.
        bgr255: whole pictures blue-green-red from 0 to 255, as released, not normalised.
        one_pass: all through the tower together, not each kind with batch statistics of its own.
    """
    whole = [(batch.require("pixel_values"), batch.require("image_mask"))]
    regions = [(batch.region_pixels, batch.region_mask)]
    if generated:
        whole.append((batch.require("generated_pixels"), batch.require("generated_mask")))
        regions.append((batch.generated_region_pixels, batch.generated_region_mask))

    def raw(pixels: Tensor, present: Tensor) -> Tensor:
        return pixels.flip(-3).float() * present[..., None, None, None]

    pictures = [(raw if bgr255 else vision.normalise)(*item) for item in whole]
    pictures += [vision.normalise(cut, seen) for cut, seen in regions if cut is not None]
    maps = iter(last_maps(see, pictures, one_pass))
    wholes = [next(maps) for _ in whole]
    return [
        Look(maps_of_whole, seen, None if cut[0] is None else next(maps), cut[1])
        for maps_of_whole, (_, seen), cut in zip(wholes, whole, regions, strict=True)
    ]


def look_up(batch: Batch, channels: int, *, generated: bool) -> list[Look]:
    """What the sources show, from the features of a frozen tower."""

    def maps(features: Tensor) -> Tensor:
        return features.float().unflatten(-1, (-1, channels))

    looks = []
    for kind in ("image", "generated") if generated else ("image",):
        cut = "region" if kind == "image" else "generated_region"
        regions = getattr(batch, f"{cut}_features")
        looks.append(
            Look(
                maps(batch.require(f"{kind}_features")),
                batch.require(f"{kind}_mask"),
                None if regions is None else maps(regions),
                getattr(batch, f"{cut}_mask"),
            )
        )
    return looks


def last_maps(see: See, pictures: list[Tensor], one_pass: bool) -> list[Tensor]:
    """The last map of each of (…, 3, S, S), as (…, P, C)."""
    flat = [tensor.flatten(0, -4) for tensor in pictures]
    if one_pass:
        maps = see(torch.cat(flat)).split([len(tensor) for tensor in flat])
    else:  # wholes, then regions, of each the generated ones first: as released, which matters to
        # running statistics alone
        order = sorted(range(len(flat)), key=lambda i: (pictures[i].dim(), -i))
        seen = {i: see(flat[i]) for i in order}
        maps = [seen[i] for i in range(len(flat))]
    return [
        last.flatten(2).transpose(1, 2).unflatten(0, tensor.shape[:-3])
        for last, tensor in zip(maps, pictures, strict=True)
    ]


def plus(value: Tensor, other: Tensor | None) -> Tensor:
    """Their sum; the first alone where there is no other."""
    return value if other is None else value + other


def pooled(rows: Tensor, counted: Tensor | None = None, mean: bool = False) -> Tensor:
    """Sum or mean over the counted ones of (…, Q, D), mask (…, Q); zero where none is."""
    if counted is None:
        return rows.mean(dim=-2) if mean else rows.sum(dim=-2)
    total = (rows * counted[..., None]).sum(dim=-2)
    return total / counted.sum(dim=-1, keepdim=True).clamp(min=1) if mean else total
