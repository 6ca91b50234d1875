"""One flipped bit, and whole files that are damaged, in whatever the product stores: it is named in
one line, or the answer is that of the undamaged store. A checkpoint may be fallen back from, said.
"""

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from faults import KILLED, SHOWN, TIMES, Server
from safetensors.numpy import save
from small_world import posts, pretrain, study, train

from finetune.inputs.frozen import see_once
from finetune.inputs.picture_store import open_store
from finetune.inputs.view import read_view
from finetune.tasks.region_cache import read_regions
from pretrain import FusionEncoder
from shards.columns import write_column
from shards.files import InputError
from shards.schema import TEACHER, TEACHER_TENSORS
from shards.stream import ShardReader

UNREAD = ("tensorboard", "log.txt", ".cache", "README.md", ".lock")
SAID = ("set aside as", "not what checksums.json")
"""A checkpoint that an older one replaces; text of a model directory, which people may change."""
BITS = 8


@dataclass(frozen=True)
class Outcome:
    """What came of reading one store."""

    kind: str
    """same, named, said; or silent, traceback: faults."""
    text: str = ""


@dataclass(frozen=True)
class Stored:
    """Something that the product keeps on disk."""

    flips: int
    files: str
    """Patterns of those that are damaged."""
    make: Callable[[Path, Path, Server], object]
    """(world, place, server): fills `place`."""
    reads: tuple[Callable[[Path, Path], object], ...] = ()
    """(world, place) -> an answer; raises InputError."""
    commands: Callable[[Path, Path], dict[str, tuple[str, ...]]] | None = None
    """Or command lines -> patterns of the files that are their answers."""


# ---- what is stored ----------------------------------------------------------------------------


def make_shards(world: Path, place: Path, server: Server) -> None:
    """With both columns."""
    shutil.copytree(world / "shards", place, dirs_exist_ok=True)
    reader, random = ShardReader(place), np.random.default_rng(0)

    def teacher(numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        for number in numbers:
            rows = reader.index.shards[number].pictures
            shapes = dict(zip(TEACHER_TENSORS, ((rows, 8), (rows, 8), (rows,)), strict=True))
            tensors = {name: random.random(shape) for name, shape in shapes.items()}
            kinds = {name: "?" if t.ndim == 1 else "f2" for name, t in tensors.items()}
            yield number, save({name: t.astype(kinds[name]) for name, t in tensors.items()})

    write_column(place, TEACHER, teacher, {"by": "hand"}, desc="teacher")


def read_tars(world: Path, place: Path) -> object:
    """Every sample without columns, as the losses without objects read them."""
    return read_shards(world, place, ())


def read_shards(
    world: Path, place: Path, columns: tuple[str, ...] = ("objects", "teacher")
) -> object:
    """Every sample with its columns."""
    reader = ShardReader(place, columns=columns)
    return [
        (s.key, s.image, s.meta, s.objects, [t.tobytes() for t in (s.teacher or {}).values()])
        for shard in range(len(reader.index.shards))
        for s in reader.samples(shard)
    ]


class Tower:
    """Sees the first pixels."""

    identity = "first"

    def __call__(self):
        return lambda pixels: pixels.reshape(len(pixels), -1)[:, :24].astype("f2")


def read_store(world: Path, place: Path) -> object:
    """Decoded pictures, and what a frozen tower saw in them."""
    folder = world / "mnre/img_org/train"
    names = [path.name for path in sorted(folder.iterdir())]
    store = open_store(folder, names, size=16, resize="squash", cache=place)
    index = store.index_of(names)
    features = see_once(store, Tower()).pixels_at(index)
    return store.pixels_at(index).tobytes(), features.tobytes()


def make_side_files(world: Path, place: Path, server: Server) -> None:
    """Regions and a view."""
    for words in (
        f"regions recover --data {world}/crops --out {place} --split val",
        f"view image-drop --data {world}/mnre --out {place}/view --keep 0.5",
    ):
        ran(server, words, place)


def read_views(world: Path, place: Path) -> object:
    """What they change, and what a result says of them."""
    keys = ("tool", "params", "seed", "split", "sources", "leaky")
    views = [read_view(path) for path in sorted((place / "view").glob("*.jsonl"))]
    return [(view.changes, [view.header.get(key) for key in keys]) for view in views]


def read_encoder(world: Path, place: Path) -> object:
    """Embeddings of two texts and a picture."""
    encoder = FusionEncoder.from_pretrained(place)
    texts = encoder.embed_text(["a dog number 1 sees", "the cat"])
    picture = encoder.embed_images([world / "pictures/1.jpg"])
    return texts.numpy().tobytes(), picture.numpy().tobytes(), encoder.config.to_dict()


def build(world: Path, place: Path) -> dict[str, tuple[str, ...]]:
    """The command that wrote the shards."""
    captions = f"--images {world}/pictures --captions {world}/pictures/captions.csv"
    words = f"shards build captions {captions} --out {place} --shard-size 2 --jobs 1"
    return {words: ("*.tar", "index.json")}


def longer(world: Path, place: Path) -> dict[str, tuple[str, ...]]:
    """Pre-training whose checkpoints all stay."""
    words = pretrain(world, place).replace("checkpoint.keep 1", "checkpoint.keep 3")
    return {words: ("run/model/*", "run/metrics.jsonl", "run/checkpoints/step-3/*.pt")}


def trained(world: Path, place: Path) -> dict[str, tuple[str, ...]]:
    """Two epochs of fine-tuning."""
    seed = ("run/seed-1/*.json*", "run/seed-1/model/*")
    return {train(world, place): ("run/result.json", *seed)}


def make_pretraining(world: Path, place: Path, server: Server) -> None:
    """Cut off after the second of three steps."""
    ran(server, next(iter(longer(world, place))), place)
    shutil.rmtree(place / "run/checkpoints/step-3")
    shutil.rmtree(place / "run/model")
    (place / "run/checkpoints/latest").write_text("step-2")


def make_unfinished_seed(world: Path, place: Path, server: Server) -> None:
    """Killed after the first of two epochs."""
    words = train(world, place).split()
    assert server.run(words, place)[0] == 0
    made = [i for i, name in enumerate(server.operations(), 1) if name == "replace progress.json"]
    shutil.rmtree(place)
    place.mkdir()
    assert server.run(words, place, made[0] + 1, "kill")[0] == KILLED


def uses(world: Path, place: Path) -> dict[str, tuple[str, ...]]:
    """Whatever reads a finished run; `evaluate` last, for it writes predictions anew."""
    report = f"report {place}/run --out {place}/report.md --summary {place}/s.json"
    return {
        report: ("report.md", "s.json"),
        one_epoch(world, place): ("run/result.json",),
        posts(world, place).replace(f"{world}/run", f"{place}/run"): ("answers.jsonl",),
        f"evaluate {place}/run --data {world}/mnre --split test": ("run/evaluate_test.json",),
    }


def one_epoch(world: Path, place: Path) -> str:
    """The command of a finished run."""
    return train(world, place).replace("epochs 2", "epochs 1")


STORED = {
    "shards": Stored(90, "* rows/*", make_shards, (read_tars, read_shards)),
    "columns": Stored(60, "[ot]*/*", make_shards, (read_shards,)),
    "build": Stored(15, ".build/*", make_shards, (), build),
    "stores": Stored(80, "**/*", lambda world, place, server: read_store(world, place),
                     (read_store,)),
    "regions and views": Stored(
        40, "**/*.jsonl", make_side_files,
        (lambda world, place: read_regions(place / "regions_vg_val.jsonl").values,
         read_views),
    ),
    "model": Stored(
        60, "*", lambda world, place, server: shutil.copytree(
            world / "model", place, dirs_exist_ok=True), (read_encoder,),
    ),
    "pre-training": Stored(75, "run/**/*", make_pretraining, (), longer),
    "unfinished seed": Stored(20, "run/**/*", make_unfinished_seed, (), trained),
    "run": Stored(
        50, "run/**/*",
        lambda world, place, server: ran(server, one_epoch(world, place), place), (), uses,
    ),
    "study": Stored(
        10, "s/**/*", lambda world, place, server: ran(server, study(world, place), place), (),
        lambda world, place: {study(world, place): ("s/study.json", "s/study.md")},
    ),
}  # fmt: skip
assert sum(stored.flips for stored in STORED.values()) == 500


def ran(server: Server, words: str, place: Path) -> None:
    """A command that must end well."""
    status, output = server.run(words.split(), place)
    assert status == 0, output


# ---- damage ------------------------------------------------------------------------------------


def flip(path: Path, random: np.random.Generator) -> str:
    """One bit anywhere."""
    content = bytearray(path.read_bytes())
    bit = int(random.integers(len(content) * BITS))
    content[bit // BITS] ^= 1 << bit % BITS
    path.write_bytes(content)
    return f"{path.name}: bit {bit}"


def cut(path: Path) -> None:
    """Half of it is gone."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path: Path) -> None:
    """All of it."""
    path.write_bytes(b"")


def blank(path: Path) -> None:
    """Zeros in the middle."""
    content = path.read_bytes()
    third = len(content) // 3
    path.write_bytes(content[:third] + bytes(third) + content[2 * third :])


def swap(other: str) -> Callable[[Path], None]:
    """Another file of the kind in its place."""

    def replace(path: Path) -> None:
        shutil.copyfile(path.parent / other, path)

    replace.__name__ = f"is {other}"
    return replace


DAMAGED = (
    ("shards", "train-000001.tar", cut),
    ("shards", "train-000001.tar", swap("train-000000.tar")),
    ("shards", "index.json", blank),
    ("columns", "objects/train-000000.safetensors", empty),
    ("shards", "rows/train-000001.safetensors", swap("train-000000.safetensors")),
    ("columns", "teacher/train-000000.safetensors", swap("train-000001.safetensors")),
    ("stores", "*/pixels.npy", cut),
    ("stores", "*/pixels.npy", blank),
    ("stores", "*/features-first.npy", swap("pixels.npy")),
    ("stores", "*/index.json", empty),
    ("model", "model.safetensors", blank),
    ("model", "tokenizer.json", cut),
    ("pre-training", "run/checkpoints/step-2/state.pt", cut),
    ("pre-training", "run/checkpoints/step-2/state.pt", swap("../step-1/state.pt")),
    ("pre-training", "run/checkpoints/step-2/COMPLETE", empty),
    ("pre-training", "run/checkpoints/step-2/COMPLETE", swap("../step-1/COMPLETE")),
    ("pre-training", "run/checkpoints/latest", empty),
    ("pre-training", "run/architecture/tokenizer.json", cut),
    ("unfinished seed", "run/seed-1/resume/epoch-1/state.pt", blank),
    ("unfinished seed", "run/seed-1/model/config.json", empty),
    ("run", "run/seed-1/pred_test.jsonl", swap("pred_dev.jsonl")),
    ("run", "run/seed-1/pred_dev.jsonl", cut),
    ("run", "run/seed-1/result.json", swap("../result.json")),
    ("run", "run/seed-1/model/head.safetensors", swap("model.safetensors")),
    ("run", "run/seed-1/model/labels.json", empty),
    ("run", "run/seed-1/inputs.json", blank),
    ("run", "run/seed-1/metrics.jsonl", blank),
    ("run", "run/config.yaml", empty),
    ("study", "s/views/image-drop--0.5--test.jsonl", cut),
)


# ---- trials ------------------------------------------------------------------------------------


class Trial:
    """A store, and what it answers whole."""

    def __init__(self, name: str, world: Path, folder: Path, server: Server) -> None:
        self.stored, self.world, self.server = STORED[name], world, server
        self.folder, self.whole, self.number = folder, folder / "whole", 0
        (folder / "0").mkdir(parents=True)
        self.stored.make(world, folder / "0", server)
        shutil.copytree(folder / "0", self.whole)
        self.answers: list[object] = [None] * 8
        assert {o.kind for o in self.read(folder / "0", keep=True)} == {"same"}

    def files(self) -> list[Path]:
        """Those that may be damaged, relative."""
        patterns = self.stored.files.split()
        paths = sorted(path for pattern in patterns for path in self.whole.glob(pattern))
        files = [path for path in paths if path.is_file() and path.stat().st_size]
        relative = [path.relative_to(self.whole) for path in files]
        return [path for path in relative if not set(path.parts) & set(UNREAD)]

    def attempt(self, file: Path | str, damage: Callable[[Path], object]) -> Outcome:
        """What comes of a store of which one file is damaged."""
        # Commands record where they wrote; what is read here must not be cached by its path.
        self.number += not self.stored.commands
        place = self.folder / str(self.number)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.whole, place)
        (path,) = place.glob(str(file))
        damage(path)
        outcomes = self.read(place)
        if self.stored.reads:
            shutil.rmtree(place)
        kinds = {outcome.kind: outcome for outcome in reversed(outcomes)}
        return next(
            kinds[k] for k in ("traceback", "silent", "said", "named", "same") if k in kinds
        )

    def read(self, place: Path, *, keep: bool = False) -> list[Outcome]:
        """Of each of its readers."""
        readers: list[Callable[[], object]] = [
            lambda read=read: read(self.world, place) for read in self.stored.reads
        ]
        commands = self.stored.commands(self.world, place) if self.stored.commands else {}
        for words, files in commands.items():
            readers.append(lambda words=words, files=files: self.command(words, files, place))
        outcomes = []
        for number, reader in enumerate(readers):
            outcome, answer = heard(reader)
            if keep:
                self.answers[number] = answer
            elif outcome.kind == "same" and answer != self.answers[number]:
                outcome = Outcome("silent", str(differing(answer, self.answers[number])))
            outcomes.append(outcome)
        return outcomes

    def command(self, words: str, files: tuple[str, ...], place: Path) -> dict[str, bytes]:
        """What a command leaves; `InputError` of what it says where it fails."""
        status, output = self.server.run(words.split(), place)
        if status and len(SHOWN.findall(output)) == 1 and "Traceback" not in output:
            raise InputError(SHOWN.findall(output)[0])
        assert not status, output
        for line in output.splitlines():
            if any(sign in line for sign in SAID):
                logging.getLogger("command").warning("%s", line)
        return {
            str(path.relative_to(place)): TIMES.sub(b"TIME", path.read_bytes())
            for pattern in files
            for path in sorted(place.glob(pattern))
        }


def heard(reader: Callable[[], object]) -> tuple[Outcome, object]:
    """How a reader ends, and its answer."""
    records: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: records.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        answer = reader()
    except InputError as error:
        kind = "traceback" if "\n" in str(error) else "named"
        return Outcome(kind, str(error)), None
    except BaseException as error:
        return Outcome("traceback", f"{type(error).__name__}: {error}"[-1500:]), None
    finally:
        logging.getLogger().removeHandler(handler)
    said = [text for text in records if any(sign in text for sign in SAID)]
    # Who changes a model's settings gets another answer, and a warning; a fall-back changes none.
    fell_back = said and "set aside as" in said[0]
    return Outcome("same" if fell_back or not said else "said", "".join(said)), answer


def differing(answer: object, truth: object) -> object:
    """Names of the files that differ."""
    if isinstance(answer, dict) and isinstance(truth, dict):
        return [name for name in {**answer, **truth} if answer.get(name) != truth.get(name)]
    return ""


def survey(trial: Trial, flips: int, seed: int) -> Counter[str]:
    """Counts by outcome. Raises: AssertionError with what was silent or a traceback."""
    random, files = np.random.default_rng(seed), trial.files()
    counts: Counter[str] = Counter()
    wrong = []
    for _ in range(flips):
        file, where = files[random.integers(len(files))], []
        outcome = trial.attempt(file, lambda path, where=where: where.append(flip(path, random)))
        kind = "fell back" if "set aside as" in outcome.text else outcome.kind
        counts[kind] += 1
        if outcome.kind in ("silent", "traceback"):
            wrong.append(f"{file.parent}/{where[0]}: {outcome}")
    assert not wrong, "\n".join([str(counts), *wrong])
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("name", STORED)
def test_flips(name, world, server, tmp_path):
    counts = survey(Trial(name, world, tmp_path, server), STORED[name].flips, 0)
    print(f"{name}: {dict(counts)}")


def test_some_flips(world, server, tmp_path):
    for name, stored in STORED.items():
        if stored.reads:
            survey(Trial(name, world, tmp_path / name.replace(" ", "-"), server), 12, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", dict.fromkeys(name for name, _, _ in DAMAGED))
def test_damaged_files(name, world, server, tmp_path):
    trial, wrong = Trial(name, world, tmp_path, server), []
    for stored, file, damage in DAMAGED:
        if stored == name:
            outcome = trial.attempt(file, damage)
            print(f"{file} {damage.__name__}: {outcome.kind}: {outcome.text[-160:]}")
            if outcome.kind in ("silent", "traceback"):
                wrong.append(f"{file} {damage.__name__}: {outcome}")
    assert not wrong, "\n".join(wrong)
