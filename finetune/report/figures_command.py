"""`python -m finetune figures KIND`: plots of runs and studies, a column of a paper wide."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from PIL import Image

from finetune.report import figures, galleries, series, tables
from finetune.report.papers import dgfpt
from finetune.run.results import Predictions, of_seeds, read_result
from shards.command import Group, Tool, require_extra
from shards.files import InputError, atomic_path, refuse_foreign

# ---- options -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class FigureConfig:
    """What every kind asks for."""

    out: Path
    """PNG to write."""

    def __post_init__(self) -> None:
        if self.out.suffix != ".png":
            raise ValueError(f"--out {self.out}: a PNG is written; call it so")
        figures.require_own(self.out)

    def done(self) -> None:
        """Say where it is."""
        print(self.out)


@dataclass(frozen=True, kw_only=True)
class StatesConfig(FigureConfig):
    """Entity and object, relation and image after the fusion layers, by t-SNE."""

    POSITIONAL: ClassVar = ("run",)
    run: str
    """Run of a method with fusion layers (promu)."""
    data: Path
    """Folder of the task's files."""
    split: Literal["train", "dev", "test"] = "test"
    """Of which rows."""
    number: int = 50
    """Rows; 50 as in the paper."""
    regions: Path | None = None
    """Folder of regions_od.jsonl: adds the objects."""
    seed: int = 0
    """Draws the rows."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.number < 3:
            raise ValueError(f"--number {self.number}: at least 3")


@dataclass(frozen=True, kw_only=True)
class LookConfig(FigureConfig):
    """What an answer needs of the picture, and what FocalMRE attends to."""

    POSITIONAL: ClassVar = ("runs",)
    runs: tuple[str, ...]
    """Runs that find relations."""
    text: str
    """The post."""
    head: str
    """Its head entity, or [START, END] in characters."""
    tail: str
    """Its tail entity."""
    image: str
    """Its picture."""
    caption: str | None = None
    """What it shows, for runs that read captions."""
    caption_model: str | None = None
    """Or a captioner: folder or hub id."""
    regions: Literal["live", "none"] = "live"
    """Of runs that read regions: ground and detect them now, or leave all slots empty."""


@dataclass(frozen=True, kw_only=True)
class AttentionConfig(FigureConfig):
    """Where FocalMRE's entities look in each framed copy of a row's picture."""

    POSITIONAL: ClassVar = ("run",)
    run: str
    """Run of focalmre, with the regions it was given."""
    data: Path
    """Folder of the task's files."""
    split: Literal["train", "dev", "test"] = "test"
    """Of which rows."""
    row: int
    """Its number in the file, from 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        refuse_foreign(self.out.with_suffix(".npz"), "pictures.npy", at=30)


@dataclass(frozen=True, kw_only=True)
class RelationsConfig(FigureConfig):
    """Test F1 of each relation."""

    POSITIONAL: ClassVar = ("runs",)
    runs: tuple[Path, ...]
    """Run directories."""


@dataclass(frozen=True, kw_only=True)
class SampleNumberConfig(RelationsConfig):
    """Scores of relations by how often train has them; also printed."""

    edges: str = ",".join(map(str, dgfpt.EDGES))
    """Of the bins, in training rows; to train on at most N rows of each relation: `finetune view
    kshot --k N --no-include-none`, then `train --view`."""


@dataclass(frozen=True, kw_only=True)
class StudyFigureConfig(FigureConfig):
    """Curves of a study: noise, few labels, regions."""

    POSITIONAL: ClassVar = ("study",)
    study: Path
    """study.json, as a study wrote it."""
    table: tuple[str, ...] = ()
    """Titles of its tables; none: all."""


# ---- states --------------------------------------------------------------------------------------


def states(config: StatesConfig) -> None:
    """PROMU, Figure 3."""
    from finetune.report.papers.promu import collect, panels

    require_extra("sklearn", "figures", "figures states draws t-SNE")
    pairs_of_states = collect(
        config.run, config.data, config.split, config.number, config.regions, config.seed
    )
    drawings = panels(pairs_of_states, config.seed)
    for pairs, panel in zip(pairs_of_states, drawings, strict=True):
        print(f"{' and '.join(pairs.names)}, {len(pairs.first)} rows: {panel['note']}")
    figures.states(drawings, config.out)
    config.done()


# ---- look ----------------------------------------------------------------------------------------


def look(config: LookConfig) -> None:
    """What each run's answer needs of the picture; of a run that attends, also where to."""
    from finetune.predict.extractor import Extractor
    from finetune.predict.live_inputs import LiveInputs
    from finetune.predict.occlusion import thumbnail
    from finetune.report import looks
    from finetune.report.command import run_names
    from finetune.tasks.posts import parse_post, positions

    record = {k: getattr(config, k) for k in ("text", "image", "caption")}
    record |= {"head": positions(config.head), "tail": positions(config.tail)}
    live = LiveInputs(regions=config.regions, caption_model=config.caption_model)
    logging.getLogger("finetune.inputs.load").setLevel(
        logging.WARNING
    )  # it counts the covered pictures
    panels: list[tuple[str, Image.Image]] = []
    for name, run in zip(run_names([Path(run) for run in config.runs]), config.runs, strict=True):
        extract = Extractor.from_pretrained(run, live=live)
        if extract.run.info.kind != "relation":
            raise InputError(f"{run}: finds entities; where a run looked is shown for relations")
        post = parse_post(record, Path(), extract.task)
        panels = panels or [("the picture", thumbnail(Path(str(post.image))))]
        seen = looks.look(name, extract, post)
        print(f"{name}: {seen.answer}, {seen.needs}")
        panels += seen.panels
    galleries.looks(panels, config.text, config.out)
    config.done()


# ---- attention -----------------------------------------------------------------------------------


def attention(config: AttentionConfig) -> None:
    """FocalMRE, Figure 4; the numbers beside the picture, as .npz."""
    from finetune.report.papers.focalmre import attend

    attended = attend(config.run, config.data, config.split, config.row)
    galleries.looks(attended.panels, attended.heading, config.out)
    with atomic_path(config.out.with_suffix(".npz")) as temporary, open(temporary, "wb") as file:
        np.savez(file, allow_pickle=False, **attended.arrays)
    config.done()


# ---- relations -----------------------------------------------------------------------------------


def relations(config: RelationsConfig) -> None:
    """Test F1 of each relation, mean over seeds."""
    answers, results = read_relations(config.runs)
    figures.relations(tables.relation_f1(answers, tables.train_counts(results)), config.out)
    config.done()


def sample_number(config: SampleNumberConfig) -> None:
    """DGF-PT, Figure 4."""
    answers, results = read_relations(config.runs)
    train = tables.train_counts(results)
    bins = dgfpt.binned(answers, train, dgfpt.edges(config.edges))
    if not any(bins.values()):
        raise InputError(f"--edges {config.edges}: test has no relation with so many training rows")
    single = dgfpt.points(answers, train)
    print("\n".join(dgfpt.lines(bins)))
    dgfpt.draw(bins, single, config.out)
    config.done()


def read_relations(
    runs: Sequence[Path],
) -> tuple[dict[str, list[Predictions]], list[dict[str, Any]]]:
    """Test answers of each run, by its name (leaky runs are called so), and its `result.json`."""
    from finetune.report.command import run_names

    answers, results = {}, []
    for name, run in zip(run_names(runs), runs, strict=True):
        result, given = read_result(run), of_seeds(run, "test")
        if result["provenance"]["kind"] != "relation" or not given:
            raise InputError(f"{run}: no relations predicted on test (seed-*/pred_test.jsonl)")
        answers[f"{name} (leaky)" if result["leaky"] else name] = given
        results.append(result)
    return answers, results


# ---- study ---------------------------------------------------------------------------------------


def study(config: StudyFigureConfig) -> None:
    """Curves over the columns of a study's tables."""
    selected = series.read_study(config.study).tables
    if config.table:
        titles = [table["title"] for table in selected]
        selected = [table for table in selected if table["title"] in config.table]
        if missing := set(config.table) - set(titles):
            raise InputError(
                f"{config.study}: no table {sorted(missing)[0]!r}; there are {', '.join(titles)}"
            )
    figures.study(selected, config.out)
    config.done()


# ---- the command ---------------------------------------------------------------------------------

TOOLS = {
    "states": Tool(StatesConfig, states, "runs/promu --data MNRE --regions MNRE --out f.png", True),
    "look": Tool(
        LookConfig,
        look,
        'runs/promu runs/focalmre --text "Bob in Oslo" --head Bob --tail Oslo --image 17.jpg '
        "--out f.png",
        True,
    ),
    "attention": Tool(
        AttentionConfig, attention, "runs/focalmre --data MNRE --row 7 --out f.png", True
    ),
    "relations": Tool(RelationsConfig, relations, "runs/mtb runs/promu --out f.png", True),
    "sample-number": Tool(
        SampleNumberConfig, sample_number, "runs/dgfpt --edges 0,50,500 --out f.png", True
    ),
    "study": Tool(StudyFigureConfig, study, "studies/p/study.json --out f.png", True),
}

main = Group(
    "python -m finetune figures", TOOLS,
    "Plots of finished runs and studies: PNG, a column of a paper wide.", "study",
)  # fmt: skip
