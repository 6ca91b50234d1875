"""`python -m finetune view`: draws what an experiment changes, and writes it as a view manifest.

Same files and seed give the same bytes. The rules are in `view_rules.py`, the file format in
`finetune/inputs/view.py`.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from finetune.config import TaskOptions
from finetune.data import view_rules
from finetune.inputs.view import Change, View, write_view
from finetune.tasks import side_files
from finetune.tasks.base import Row, SideInput, Task
from finetune.tasks.region_cache import read_regions
from shards.command import Tool, dispatch, exit_on_input_error
from shards.files import InputError
from shards.images import decoded

SCOPES = {
    "train": ("train",),
    "dev": ("val",),
    "test": ("test",),
    "train+dev": ("train", "val"),
    "all": ("train", "val", "test"),
}


Scope = Literal["train", "dev", "test", "train+dev", "all"]


def check_share(name: str, value: Fraction) -> None:
    """Refuse what is no share."""
    if not 0 <= value <= 1:
        raise ValueError(f"--{name} {value}: not a share in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class ViewConfig(TaskOptions):
    """What every view asks for."""

    out: Path
    """Folder for {split}.jsonl, or one .jsonl file."""
    seed: int = 1
    """Draws what is changed."""
    scope: Scope = "all"
    """Splits to change."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: not a whole number")
        for name in ("ratio", "keep", "p_modify"):
            check_share(name, getattr(self, name, Fraction(0)))
        for name in ("num_grounded", "num_detected"):
            if (getattr(self, name, None) or 0) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: not a whole number")

    @property
    def region_cache(self) -> Path | None:
        """Folder of the regions that the view changes or lends."""
        return getattr(self, "regions", None)

    def parameters(self) -> dict[str, Any]:
        """The options of this kind of view alone, but for where its files lie."""
        common = {field.name for field in fields(ViewConfig)} | {"regions"}
        names = [field.name for field in fields(self) if field.name not in common]
        values = {name: getattr(self, name) for name in names}
        return {k: float(v) if isinstance(v, Fraction) else v for k, v in values.items()}


@dataclass(frozen=True, kw_only=True)
class AlignNoise(ViewConfig):
    """Give rows wrong pictures."""

    ratio: Fraction
    """Share of rows."""
    unit: Literal["row", "tweet"] = "row"
    """What gets a wrong picture."""
    regions: Path | None = None
    """Region cache: regions_vg_*, regions_od."""
    vg: Literal["donor", "reground"] = "donor"
    """Boxes in the wrong picture: those of its own row, or grounded anew from the receiving row's
    phrases."""
    grounder: str | None = None
    """Of reground: Grounding DINO, folder or id."""
    tagger: str = "en_core_web_sm"
    """Of reground: spaCy model, or none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vg == "reground" and self.grounder is None:
            raise ValueError("--vg reground needs --grounder MODEL")


@dataclass(frozen=True, kw_only=True)
class AugNoise(ViewConfig):
    """Spoil regions."""

    scope: Scope = "test"
    """Splits to change."""
    ratio: Fraction
    """Share of regions."""
    regions: Path
    """Region cache: regions_vg_*, regions_od."""
    ops: Literal["both", "modify", "delete"] = "both"
    """What is done to them."""
    p_modify: Fraction = Fraction(1, 2)
    """Of both: chance of a random box, not deletion."""
    num_grounded: int | None = None
    """Grounded regions a row that the method sees: only these are spoilt; default: all cached."""
    num_detected: int | None = None
    """Detected regions a picture, likewise."""


@dataclass(frozen=True, kw_only=True)
class KeepFraction(ViewConfig):
    """Keep a share of the rows."""

    scope: Scope = "train"
    """Splits to change."""
    ratio: Fraction
    """Share of rows."""
    stratified: bool = False
    """The same share of each relation."""


@dataclass(frozen=True, kw_only=True)
class KShot(ViewConfig):
    """Keep K rows of each relation."""

    scope: Scope = "train"
    """Splits to change."""
    k: int
    """Rows of each relation."""
    include_none: bool = True
    """Limit rows without a relation, too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.k < 1:
            raise ValueError(f"--k {self.k}: not above zero")


@dataclass(frozen=True, kw_only=True)
class ImageDrop(ViewConfig):
    """Take pictures away."""

    keep: Fraction
    """Share of pictures that stay."""


@dataclass(frozen=True, kw_only=True)
class RegionGrid(ViewConfig):
    """Keep the first regions of each kind."""

    regions: Path
    """Region cache: regions_vg_*, regions_od."""
    num_grounded: int
    """Grounded regions a row."""
    num_detected: int
    """Detected regions a picture."""


def draw(config: ViewConfig, task: Task, split: str) -> View:
    """The view of one split that the options describe."""
    rows = task.read(split)
    caches = _caches(config.region_cache, rows, split)
    grounded, detected = (cache.values if cache else {} for cache in caches)
    seed = config.seed
    match config:
        case AlignNoise():
            lent = grounded if config.regions and config.vg == "donor" else None
            changes = view_rules.align_noise(
                rows, config.ratio, seed, unit=config.unit, grounded=lent
            )
            if config.vg == "reground":
                changes = _reground(config, changes, rows, task.image_folder(split))
        case AugNoise():
            chance = {"both": config.p_modify, "modify": 1, "delete": 0}[config.ops]
            changes = view_rules.aug_noise(
                rows, grounded, detected, config.ratio, seed, p_modify=float(chance),
                num_grounded=config.num_grounded, num_detected=config.num_detected,
            )  # fmt: skip
        case KeepFraction():
            changes = view_rules.fraction(rows, config.ratio, seed, stratified=config.stratified)
        case KShot():
            changes = view_rules.kshot(rows, config.k, seed, include_none=config.include_none)
        case ImageDrop():
            changes = view_rules.image_drop(rows, config.keep, seed)
        case RegionGrid():
            changes = view_rules.region_grid(
                rows, grounded, detected, config.num_grounded, config.num_detected
            )
        case _:
            raise TypeError(f"no view is drawn for {type(config).__name__}")
    return View(split, changes, _header(config, split, task, [c for c in caches if c]))


def _caches(
    folder: Path | None, rows: Sequence[Row], split: str
) -> tuple[SideInput | None, SideInput | None]:
    """Grounded and detected regions, each None where it was not given."""
    if folder is None:
        return None, None
    grounded = read_regions(side_files.find(folder, "regions_vg_{split}.jsonl", split))
    grounded.require_rows(len(rows))
    if not (folder / "regions_od.jsonl").is_file():
        return grounded, None
    detected = read_regions(folder / "regions_od.jsonl")
    detected.of(rows)
    return grounded, detected


def _header(
    config: ViewConfig, split: str, task: Task, caches: Sequence[SideInput]
) -> dict[str, Any]:
    """What decided the view; nothing of where its files lie, so that it is the same anywhere."""
    paths = [path for path in [task.split_file(split)] if path] + [cache.path for cache in caches]
    tool = next(name for name, tool in TOOLS.items() if isinstance(config, tool.config))
    return {
        "tool": tool,
        "params": config.parameters(),
        "seed": config.seed,
        "split": split,
        "sources": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths},
        "leaky": any(cache.leaky for cache in caches),
    }


def _reground(
    config: AlignNoise, changes: Mapping[int, Change], rows: Sequence[Any], folder: Path
) -> dict[int, Change]:
    """The receiving row's own phrases, looked for in the wrong picture."""
    from finetune.data.grounding import Grounder, keywords, spacy_tagger
    from finetune.data.region_files import pictures

    tag = None if config.tagger == "none" else spacy_tagger(config.tagger)
    grounder, by_row = Grounder(str(config.grounder)), {row.row: row for row in rows}
    paths = pictures(folder, (change.image_id for change in changes.values()), max_missing=0)
    regrounded = {}
    for row, change in changes.items():
        picture = decoded(paths[str(change.image_id)])  # each change names its wrong picture
        regions = grounder(picture, keywords(by_row[row], tag))
        regrounded[row] = replace(change, vg=tuple(regions))
    return regrounded


# ---- command -------------------------------------------------------------------------------------


def write(config: ViewConfig) -> dict[Path, str]:
    """Write the manifest of every split of the scope that there is; path -> what it holds.

    Raises:
        InputError: no split is there, or one file is named for several.
    """
    task = config.open()
    splits = [split for split in SCOPES[config.scope] if task.split_file(split)]
    if not splits:
        raise InputError(f"{config.data}: no split of --scope {config.scope} is there")
    one_file = config.out.suffix == ".jsonl"
    if one_file and len(splits) > 1:
        raise InputError(f"--out {config.out}: {len(splits)} splits need a folder; or give --scope")
    written = {}
    for split in splits:
        view = draw(config, task, split)
        path = config.out if one_file else config.out / f"{split}.jsonl"
        write_view(path, view)
        written[path] = f"changes {len(view.changes)} rows of {split}"
    return written


def run(config: ViewConfig) -> None:
    """Write, and say what."""
    for path, text in write(config).items():
        print(f"{path}: {text}")
    task = config.open()
    for split in SCOPES[config.scope]:
        if not task.split_file(split):
            print(f"{config.data} has no {split} split: no view of it")


_DATA = "--data DATA/mnre"
TOOLS = {
    "align-noise": Tool(AlignNoise, run, f"{_DATA} --ratio 0.05 --out views/align-05", True),
    "aug-noise": Tool(
        AugNoise, run, f"{_DATA} --ratio 0.05 --regions DATA/mnre --out views/aug", True
    ),
    "fraction": Tool(KeepFraction, run, f"{_DATA} --ratio 0.05 --out views/fraction", True),
    "kshot": Tool(KShot, run, f"{_DATA} --k 5 --out views/kshot", True),
    "image-drop": Tool(ImageDrop, run, f"{_DATA} --keep 0.4 --out views/image-drop", True),
    "region-grid": Tool(
        RegionGrid,
        run,
        f"{_DATA} --regions DATA/mnre --num-grounded 2 --num-detected 1 --out views/grid",
        True,
    ),
}
"""Name -> options, what writes it, example."""


def default_scope(name: str) -> Scope:
    """The splits that this tool changes where `--scope` is not given."""
    config_class: Any = TOOLS[name].config
    return config_class.scope


@exit_on_input_error
def main(argv: Sequence[str]) -> None:
    """`python -m finetune view`"""
    dispatch(
        "python -m finetune view",
        TOOLS,
        argv,
        "Write a view manifest: what an experiment changes in a split.",
        f"align-noise {TOOLS['align-noise'].example}",
    )
