"""What a method asks of its inputs, and how an input is made.

`InputSpec` is all that the providers know of a method. A `Provider` makes one input; those that all
methods share stand in `load.SHARED`, a method brings others of its own: `Method.providers`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from finetune.inputs.picture_store import open_images
from finetune.inputs.pictures import ImageStore, Name, blank_store, decode_images
from finetune.inputs.split import InputOptions, LoadedSplit
from finetune.tasks.base import Row, SideInput, Task

See = Callable[[np.ndarray], np.ndarray]
"""(N, 3, S, S) uint8 -> (N, F) float16"""


class FrozenVision(Protocol):
    """A vision tower that never learns: what it sees in a picture is kept."""

    @property
    def identity(self) -> str:
        """Changes with weights and settings; becomes part of a file name."""

    def __call__(self) -> See:
        """The tower at work, on `distributed.device()`; asked for where features are missing."""


@dataclass(frozen=True)
class Provider:
    """How one input is made.

        def add_ages(loaded, wanted):
            source = …                                    # a `SideInput`, read strictly
            ages = np.array(source.of(loaded.rows))       # (N,), or a list of one array a row
            return loaded.with_column("ages", ages).with_source(source)

    A field of `Batch` gets what is called like it; any other name is found by
    `batch.require("ages")`. Ragged columns name their mask: `with_column(…, mask="ages_mask")`.
    """

    add: Callable[[LoadedSplit, "Wanted"], LoadedSplit]
    """Gives a split this input. Raises InputError for what is absent or damaged."""
    live: Callable[[LoadedSplit, "Wanted"], LoadedSplit] | str
    """The same of new posts: rows and pictures, but no files. A text: why that cannot be, as the
    end of "it reads what new posts do not have: …"."""
    visual: bool = False
    """Whether `--images none` switches it off."""
    asks: tuple[str, ...] = ()
    """Fields of `InputSpec` without which it cannot be made."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What a method asks of its inputs; `Method.spec` makes it of the attributes called so."""

    method: str
    """Its name, for messages."""
    needs: frozenset[str] = frozenset()
    """Inputs beside the text."""
    providers: Mapping[str, Provider] = field(default_factory=dict)
    """Those it brings; they go before shared ones of the same name."""
    image_size: int | None = None
    """Side of the square pictures."""
    image_resize: str = "squash"
    """How a picture becomes a square: a key of `pictures.RESIZERS`."""
    region_size: int | None = None
    """Side of the square `region_pixels`."""
    region_slots: Mapping[str, int] = field(default_factory=dict)
    """Kind of region (`vg` grounded, `od` detected) -> how many, in the order of the slots."""
    longest_text: int | None = None
    """Word pieces of a text that it takes, specials included; None: as many as `positions`."""
    longest_caption: int | None = None
    """Likewise of a caption as a text of its own."""
    whole_posts: bool = False
    """Whether it reads posts from start to end, whatever `--max_length` says."""
    positions: int | None = None
    """Of its encoder; None: any number."""
    frozen_vision: FrozenVision | None = None
    """What sees all pictures before the first step."""


class ReadsInputs(Protocol):
    """Whatever has a specification: a method."""

    @property
    def spec(self) -> InputSpec:
        """What it asks."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an input is made for."""

    task: Task
    split: str
    original: Sequence[Row]
    """The rows before any view."""
    tokenizer: Any
    spec: InputSpec
    options: InputOptions
    given: Mapping[str, SideInput] = field(default_factory=dict)
    """`caption`, `vg`, `od`: side inputs at hand, in the place of files."""

    def pictures(self, folder: Path, names: Iterable[Name], size: int | None) -> ImageStore:
        """A store of these pictures as squares of this size; grey ones for `--images blank`.

        Raises:
            InputError: more absent ones than `--max_missing`.
        """
        side, options = size or 0, self.options  # a provider that `asks` for a size has it
        if options.images == "blank":
            return blank_store(folder, names, size=side)
        resize = self.spec.image_resize
        if options.cache is None:
            store = decode_images(folder, names, size=side, resize=resize)
        else:
            store = open_images(folder, names, size=side, resize=resize, cache=options.cache)
        store.require(options.max_missing)
        return store
