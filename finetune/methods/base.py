"""The contract of a method. A new method is one file and one line in `finetune/registry.py`.

    @dataclass(frozen=True, kw_only=True)
    class MineConfig:                       # appears on the command line as --model.width
        width: int = 64
        \"""Width of the new layer.\"""

    class Mine(Method):
        Config = MineConfig
        needs = frozenset({"image"})

        @classmethod
        def build(cls, config, task, source):
            encoder, tokenizer = load_fusion_encoder(source, task)
            return cls(encoder, task, config), tokenizer

        def forward(self, batch):
            …
            return MethodOutput(logits, loss)

`self.encoder` is what `source` holds: it trains at `optim.lr` and is saved as a model directory of
its own, so a finished run can be the `--init` of the next. Everything else is new, trains at
`optim.head_lr` and is saved as `head.safetensors`.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor, nn

from finetune.inputs.batch import Batch
from finetune.inputs.spec import FrozenVision, InputSpec, Provider
from finetune.methods.towers.encode_once import EncodeOnce
from finetune.tasks.base import TaskInfo
from finetune.tasks.metrics import Entity
from pretrain.checkpoint.directory import ModelDirectory
from pretrain.optim import parameter_groups
from shards.files import InputError


@dataclass(frozen=True)
class Source:
    """Where a method's encoder comes from."""

    path: str
    """Model directory or hub id."""
    random_weights: bool = False
    """Take architecture and tokenizer only."""
    finished: bool = False
    """Every tensor is loaded afterwards: towers beside the encoder need no weights of their own."""

    @cached_property
    def directory(self) -> ModelDirectory:
        """What `path` comes to: found or downloaded, and its `config.json` read, once.

        Raises:
            InputError: not there, no model directory, or damaged.
        """
        return ModelDirectory.open(self.path)


@dataclass(frozen=True)
class MethodOutput:
    """What a forward pass gives."""

    logits: Tensor
    """(B, labels) for relations, (B, W, labels) for entities; float32."""
    loss: Tensor | None
    """Scalar mean over the batch; None where the batch has no labels."""


@dataclass(frozen=True, kw_only=True)
class NoConfig:
    """This method has no settings of its own."""


class Method(nn.Module):
    """A model for one task: encoder + head, batch in, logits and loss out."""

    Config: ClassVar[type] = NoConfig
    """Frozen, keyword-only dataclass with a docstring under each field."""
    needs: frozenset[str] = frozenset()
    """Inputs beyond the text: keys of `finetune.inputs.load.SHARED` or of `providers`. An instance
    may want more than its class, where its settings say so."""
    providers: Mapping[str, Provider] = {}
    """How inputs are made that this method alone reads: need -> provider."""
    kinds: ClassVar[frozenset[str]] = frozenset({"relation"})
    """Kinds of task this method can do."""
    towers: tuple[str, ...] = ("encoder.",)
    """Names that begin so are of loaded weights: they learn at `optim.lr`."""
    image_resize: str = "squash"
    region_slots: Mapping[str, int] = {}
    longest_text: int | None = None
    longest_caption: int | None = None
    whole_posts: bool = False
    memory: EncodeOnce | None = None
    """What `once` keeps within `one_pass`."""

    encoder: nn.Module

    @classmethod
    def build(cls, config: Any, task: TaskInfo, source: Source) -> tuple["Method", Any]:
        """A method with its encoder from `source` and a fresh head, and its tokenizer."""
        raise NotImplementedError

    @property
    def image_size(self) -> int | None:
        """Side of the square pictures that `forward` takes: as the encoder says."""
        return getattr(getattr(self.encoder, "config", None), "image_size", None)

    @property
    def region_size(self) -> int | None:
        """Side of the square `region_pixels`."""
        return self.image_size

    @property
    def frozen_vision(self) -> FrozenVision | None:
        """What sees all pictures before the first step, where `visual_features` is a need."""
        return None

    @property
    def spec(self) -> InputSpec:
        """What this method asks of its inputs; `InputSpec` says what each attribute means."""
        sizes = getattr(self.encoder, "config", None)
        return InputSpec(
            method=type(self).__name__,
            needs=frozenset(self.needs),
            providers=self.providers,
            image_size=self.image_size,
            image_resize=self.image_resize,
            region_size=self.region_size,
            region_slots=self.region_slots,
            longest_text=self.longest_text,
            longest_caption=self.longest_caption,
            whole_posts=self.whole_posts,
            # A RoBERTa's table has rows before the first word piece.
            positions=getattr(
                self.encoder, "longest_text", getattr(sizes, "max_position_embeddings", None)
            ),
            frozen_vision=self.frozen_vision,
        )

    def forward(self, batch: Batch) -> MethodOutput:
        """One batch on this module's device."""
        raise NotImplementedError

    def decode(self, output: MethodOutput, batch: Batch) -> list[Any]:
        """One prediction a row: a label id, or (entities) the list of its words' label ids, as
        `self.head` decodes them; the likeliest where it has no `decode`."""
        head: Any = getattr(self, "head", None)
        if hasattr(head, "decode"):
            return head.decode(output, batch)
        return output.logits.argmax(dim=-1).tolist()

    def entity_scores(
        self, output: MethodOutput, batch: Batch, entities: Sequence[Sequence[Entity]]
    ) -> list[list[float | None]]:
        """Probability of each row's entities, as `self.head` knows it (`layers.TaggingHead`);
        None of each where it has no `entity_scores`."""
        head: Any = getattr(self, "head", None)
        if not hasattr(head, "entity_scores"):
            return [[None] * len(row_entities) for row_entities in entities]
        return head.entity_scores(output, batch, entities)

    def answer_with(self, relations: Mapping[str, str], tokenizer: Any) -> None:
        """Answer with these relations, name -> description, instead of those of training.

        Raises:
            InputError: it knows relations by training alone.
        """
        raise InputError(
            f"--relations: {type(self).__name__} reads no descriptions of relations; a run of "
            "--method retrieval does"
        )

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """Surrounds a pass over a split at evaluation: the weights stand still, and `once` keeps
        what several rows share."""
        self.memory = EncodeOnce()
        try:
            yield
        finally:
            self.memory = None

    def once(self, encode: Callable[..., Tensor], *inputs: Tensor, name: str = "") -> Tensor:
        """`encode(*inputs)` row by row; within `one_pass`, of equal rows (N, …) once. `name` tells
        encoders apart whose inputs have the same shapes."""
        return encode(*inputs) if self.memory is None else self.memory(encode, *inputs, name=name)

    def before_training(self, run: Any) -> None:
        """Called once before the optimizer is made; `run`: the TrainConfig."""

    def learning_rate(self, name: str, optim: Any, above: int) -> float:
        """Of the parameter called `name`, over which so many layers of its tower lie."""
        if name.startswith(self.towers):
            return optim.lr * optim.layer_decay**above
        return optim.crf_lr if ".crf." in f".{name}" else optim.head_lr

    def parameter_groups(self, optim: Any) -> list[dict]:
        """AdamW groups (`optim`: the OptimConfig): towers at `lr`, less below their top where
        `layer_decay` says so, CRF scores at `crf_lr`, the rest at `head_lr`."""
        above = layers_above(name for name, _ in self.named_parameters())
        by_rate: dict[float, list[tuple[str, nn.Parameter]]] = {}
        for name, parameter in self.named_parameters():
            rate = self.learning_rate(name, optim, above[name])
            by_rate.setdefault(rate, []).append((name, parameter))
        return [
            group
            for lr, named in by_rate.items()
            for group in parameter_groups(named, lr=lr, weight_decay=optim.weight_decay)
        ]


def layers_above(names: Iterable[str]) -> dict[str, int]:
    """How many layers of the encoder lie above each parameter.

    Stacks are recognised by `….layer.3.…` or `….blocks.3.…`; one called `fusion` lies above the
    others. Embeddings lie below all layers; what is in no stack (norms, projections) above.
    """
    places: dict[str, tuple[str, int]] = {}
    height: dict[str, int] = {}
    names = list(names)
    for name in names:
        if match := re.search(r"^(.*)\.(?:layer|blocks)\.(\d+)\.", name):
            stack, index = match[1], int(match[2])
            places[name] = stack, index
            height[stack] = max(height.get(stack, 0), index + 1)
    fusion = sum(layers for stack, layers in height.items() if stack.endswith("fusion"))
    # Towers stand side by side: embeddings of either count as below the deeper one.
    deepest = fusion + max(
        (n for stack, n in height.items() if not stack.endswith("fusion")), default=0
    )
    result = {}
    for name in names:
        if name in places:
            stack, index = places[name]
            on_top = 0 if stack.endswith("fusion") else fusion
            result[name] = on_top + height[stack] - 1 - index
        else:
            is_embedding = any(part in name for part in ("embed", "cls_token"))
            result[name] = deepest if is_embedding else 0
    return result
