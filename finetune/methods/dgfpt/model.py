"""DGF-PT: prefixes, staged reading, dual-gated fusion, generative decoder (Findings of ACL 2023).

A language model reads [prefixes ; objects ; picture ; text] in stages (eqs. 1–3), here as one pass:
for a causal model that is the same, since a stage sees earlier ones through the keys and values of
every layer. Gates mix objects and picture into the text (eqs. 4–8); a small decoder reads the text
and the entities' types and names the relation (eqs. 9, 13). No code was published; what the paper
leaves open is a setting, and eqs. 11 and 12, which as printed push the wrong way, are corrected.

B: rows, L: text positions, K: objects, M: image blocks, D: hidden size, F: feature width.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.inputs.types import TYPES
from finetune.methods.base import Method, MethodOutput, Source
from finetune.methods.dgfpt.config import PREFIXES, DgfptConfig
from finetune.methods.dgfpt.fusion import (
    DualGate,
    RelationPredictor,
    TypeDecoder,
    TypeQuestions,
    VisualSegments,
    mean_embeddings,
    relation_words,
    select_object,
    signature_penalties,
)
from finetune.methods.dgfpt.language_model import (
    first_and_last,
    load_plm,
    pieces,
    read,
    text_towers,
)
from finetune.methods.dgfpt.losses import joint, same_posts
from finetune.methods.dgfpt.text import (
    Layout,
    Part,
    Prefix,
    Text,
    Unmarker,
    last_state,
    lay_out,
    masked_mean,
    unmasked,
)
from finetune.methods.dgfpt.vision import TimmTower, Vision, load_vision
from finetune.tasks.base import TaskInfo
from shards.files import InputError


@dataclass(frozen=True)
class Seen:
    """Pictures of a batch as input vectors."""

    image: Part
    """(B, M, D) and (B, M)"""
    objects: Part | None
    """(B, K, D) and (B, K)"""


class Dgfpt(Method):
    """Language model, prefixes, gates, decoder."""

    Config = DgfptConfig
    towers = ("encoder.", "vision.tower.")
    encoder: Any
    vision: Vision | None
    decoder: TypeDecoder | None
    caption: nn.Linear | None
    fuse: DualGate | None
    look: VisualSegments | None
    ends: Tensor
    penalties: Tensor

    def __init__(
        self,
        encoder: nn.Module,
        tokenizer: Any,
        vision: Vision | None,
        task: TaskInfo,
        config: DgfptConfig,
    ) -> None:
        super().__init__()
        self.config, self.encoder, self.vision = config, encoder, vision
        for tower in text_towers(encoder):
            tower.requires_grad_(config.plm == "full")
        words = self.words.weight.detach()
        size = words.shape[1]
        self.unmark = Unmarker(tokenizer, task, config.markers)
        self.register_buffer("ends", first_and_last(tokenizer), persistent=False)
        self.text_layer = nn.Linear(size, size)
        # At first the language model reads its own word vectors, as it was trained to.
        nn.init.eye_(self.text_layer.weight)
        nn.init.zeros_(self.text_layer.bias)
        self.prefixes = nn.ModuleDict()
        for name in [name for name in PREFIXES if name in config.order]:
            parts = [pieces(tokenizer, part) for part in PREFIXES[name]]
            self.prefixes[name] = Prefix(parts, words, config.prefix == "trained")
        self.look = self.fuse = self.caption = self.decoder = None
        if vision is not None:
            self.look = VisualSegments(vision.width, words, config.image_blocks)
        if config.gates:
            self.fuse = DualGate(size, config.dropout, config.alpha)
            if config.caption_weight:
                self.caption = nn.Linear(size, size)
        self.questions = TypeQuestions(mean_embeddings(tokenizer, words, TYPES))
        if config.decoder == "small":
            self.decoder = TypeDecoder(encoder, size, config.dropout)
        names = mean_embeddings(tokenizer, words, map(relation_words, task.labels))
        self.predict = RelationPredictor(names, config.dropout)
        penalties = signature_penalties(task.labels, config.type_mask)
        # Not stored: labels and settings, which a run keeps, say it all.
        self.register_buffer("penalties", penalties, persistent=False)
        self.needs, self.region_slots = self._inputs()

    def _inputs(self) -> tuple[frozenset[str], dict[str, int]]:
        """What the settings make this method want, and its region slots."""
        slots = {"vg": self.config.grounded, "od": self.config.objects}
        slots = {kind: number for kind, number in slots.items() if number}
        needs = {"entity_types"} | ({"caption"} if self.config.caption_weight else set())
        if self.vision is not None:
            needs |= {"image", "region_pixels"} if slots else {"image"}
            needs |= {"visual_features"} if self.vision.frozen else set()
        return frozenset(needs), slots

    @classmethod
    def build(cls, config: DgfptConfig, task: TaskInfo, source: Source) -> tuple["Dgfpt", Any]:
        """From GPT-2, GPT, a text encoder or a fusion model directory."""
        encoder, tokenizer = load_plm(source, task, config.positions)
        tower = TimmTower(config.vision, config.image_size, config.vision_random)
        vision = load_vision(tower, source, encoder, trained=config.vision_trained)
        return cls(encoder, tokenizer, vision, task, config), tokenizer

    @property
    def words(self) -> nn.Embedding:
        """The word table."""
        return text_towers(self.encoder)[0].get_input_embeddings()

    @property
    def image_size(self) -> int | None:
        """As the vision tower wants it."""
        return None if self.vision is None else self.vision.size

    @property
    def frozen_vision(self) -> TimmTower | None:
        """What computes `image_features` and `region_features`."""
        return None if self.vision is None else self.vision.frozen

    def train(self, mode: bool = True) -> "Dgfpt":
        """A frozen language model stays without dropout."""
        super().train(mode)
        if self.config.plm == "frozen":
            for tower in text_towers(self.encoder):
                tower.eval()
        return self

    # ------------------------------------------------------------------ forward

    def forward(self, batch: Batch) -> MethodOutput:
        """Logits (B, C) from the fused text; the joint loss."""
        text = self.unmark(batch.input_ids, batch.attention_mask)
        seen = self.see(batch)
        types = batch.require("entity_types")
        questions = self.questions(types)
        layout = self.lay_out(text, seen, questions)
        states = read(self.encoder, layout.embeds, layout.mask, layout.positions)
        parts = {name: states[:, place] for name, place in layout.places.items()}
        plain, image, objects = parts["T"], None, None  # h_t, h̄_i, h_o
        # Segments come back at their places; what was masked on the way in is masked in the gates.
        if seen is not None and "I" in parts:
            image = parts["I"].mean(1), seen.image[1][:, 0]
        if seen is not None and seen.objects is not None and "O" in parts:
            objects = parts["O"], seen.objects[1]
        # The text alone is gated: the decoder and both entities read it, not the pictures.
        fused = plain
        if self.fuse is not None:
            fused = self.fuse(plain, self.pool(plain, text), objects, image)
            fused = fused + self.caption_term(batch)
        logits, before = self.classify(fused, plain, text, image, parts, questions, batch)
        penalty = self.penalties[types[:, 0], types[:, 1]]
        logits, before = logits + penalty, None if before is None else before + penalty
        if batch.labels is None:
            return MethodOutput(logits, None)
        compared = None
        if self.fuse is not None and self.config.contrast_weight:
            posts = same_posts(text.ids, text.mask)
            compared = self.pool(plain, text), self.pool(fused, text), posts
        return MethodOutput(logits, joint(self.config, logits, batch.labels, before, compared))

    def see(self, batch: Batch) -> Seen | None:
        """The pictures as input vectors; None: vision is off."""
        features = self.vision and self.vision.features(batch, self.encoder, self.once)
        if not features or self.look is None:
            return None
        pictures, objects = features
        blocks, present = self.look.image_blocks(pictures), batch.require("image_mask")[:, None]
        image = blocks, present.expand(blocks.shape[:2])
        if objects is None:
            return Seen(image, None)
        return Seen(image, (self.look.objects(objects), batch.require("region_mask") & present))

    def lay_out(self, text: Text, seen: Seen | None, questions: Tensor) -> Layout:
        """All segments of the one pass, in the order of the settings (eqs. 1–3)."""
        words = self.text_layer(self.words(text.ids))
        entities = [masked_mean(words, span) for span in (text.head, text.tail)]
        segments = {"T": (words, text.mask)}
        if "Pe" in self.prefixes:
            segments["Pe"] = unmasked(self.prefixes["Pe"](*entities))
        if "Po" in self.prefixes:
            segments["Po"] = self.object_prefix(entities, None if seen is None else seen.objects)
        if seen is not None:
            segments |= {"I": seen.image} | ({"O": seen.objects} if seen.objects else {})
        begin, *end = (unmasked(row.expand(len(words), 1, -1)) for row in self.words(self.ends))
        # An order may name what this batch does not have: pictures, where vision is off.
        parts = {"begin": begin} | {n: segments[n] for n in self.config.order if n in segments}
        if self.decoder is None:
            parts["questions"] = unmasked(questions)
        if end:
            parts["end"] = end[0]
        layout = lay_out(parts, self.config.positions)
        sizes: Any = self.encoder.config
        limit = getattr(self.encoder, "longest_text", sizes.max_position_embeddings)
        if layout.mask.shape[1] > limit:
            raise InputError(
                f"{layout.mask.shape[1]} positions with prefixes and objects, but the language "
                f"model has {limit}; lower --max_length or --model.objects"
            )
        return layout

    def object_prefix(self, entities: list[Tensor], objects: Part | None) -> Part:
        """P_o with an object for each entity; without objects its slots are masked."""
        prefix = cast(Prefix, self.prefixes["Po"])
        if objects is None:
            empty = torch.zeros_like(entities[0])
            return prefix(empty, empty), prefix.mask(empty[:, 0].bool())
        how = self.config.object_select
        chosen = [select_object(entity, *objects, how, i) for i, entity in enumerate(entities)]
        return prefix(*chosen), prefix.mask(objects[1].any(1))

    def pool(self, states: Tensor, text: Text) -> Tensor:
        """(B, L, D) -> (B, D), one vector of a text."""
        match self.config.pool:
            case "mean":
                return masked_mean(states, text.mask)
            case "entities":
                return masked_mean(states, text.head | text.tail)
            case "last":
                return last_state(states, text.mask)

    def caption_term(self, batch: Batch) -> Tensor | float:
        """Eq. 8's δ·g (B, 1, D): g is what the language model, as it is, reads in the caption; no
        gradient goes there. Zero for a row without caption."""
        if self.caption is None:
            return 0.0
        ids, mask = batch.require("caption_ids"), batch.require("caption_mask")
        if len(self.ends) == 1:  # GPT: nothing stands in front yet
            ids = torch.cat([self.ends.expand(len(ids), 1), ids], dim=1)
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        with torch.no_grad():
            states = self.once(self.read_alone, ids, mask)
        words = mask & ~torch.isin(ids, self.ends)
        term = self.caption(masked_mean(states, words)) * words.any(1, keepdim=True)
        return self.config.caption_weight * term[:, None]

    def read_alone(self, ids: Tensor, mask: Tensor) -> Tensor:
        """A text without prefixes: (B, L) ids and mask -> (B, L, D)."""
        return read(self.encoder, self.words(ids), mask, (mask.cumsum(1) - 1).clamp(min=0))

    def classify(
        self,
        fused: Tensor,
        plain: Tensor,
        text: Text,
        image: tuple[Tensor, Tensor] | None,
        parts: dict[str, Tensor],
        questions: Tensor,
        batch: Batch,
    ) -> tuple[Tensor, Tensor | None]:
        """Logits after fusion and, where the loss compares them, before it (eqs. 9, 13)."""
        compared = batch.labels is not None and self.fuse and self.config.consistency_weight
        sides = [fused, plain] if compared else [fused]
        count = len(sides)
        states = torch.cat(sides)
        span = [mask.repeat(count, 1) for mask in (text.mask, text.head, text.tail)]
        if self.decoder is None:
            relation = torch.cat([parts["questions"][:, -1] + self.pool(s, text) for s in sides])
        else:
            relation = self.decoder(states, span[0], questions.repeat(count, 1, 1))
        if self.config.classify_on == "plain":
            states = plain.repeat(count, 1, 1)
        pool = last_state if self.config.entity_pool == "last" else masked_mean
        entities = [pool(states, mask) for mask in span[1:]]
        picture = None if image is None else (image[0] * image[1][:, None]).repeat(count, 1)
        logits = self.predict(relation, picture, *entities)
        return (*logits.chunk(count),) if compared else (logits, None)
