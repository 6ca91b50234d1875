"""A finished run as a function: post in, relation or entities out.

    from finetune.extractor import Extractor

    extract = Extractor.from_pretrained("runs/promu")
    extract("Bob in Oslo", head="Bob", tail="Oslo", image="17.jpg")

    extract = Extractor.from_pretrained("runs/promu", ner="runs/twitter")   # finds the entities too
    extract("Bob in Oslo", image="17.jpg")

Posts become rows of a task of the kind that the run was trained on, and then take the road of
training and evaluation: the task's `encode`, `inputs.load_split`, `evaluate.predict`.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune import calibration, checkpoint, registry
from finetune.evaluate import pick_precision, predict, seed_directories
from finetune.inputs import InputOptions, load_split
from finetune.metrics import NO_RELATION, entities
from finetune.own_inputs import LiveInputs, check_needs
from finetune.posts import Post, Span, parse_post
from finetune.tasks.base import Column, Row, Task, TaskInfo
from finetune.tasks.mnre import RelationRow
from finetune.tasks.twitter import NERRow
from pretrain import distributed
from pretrain.checkpoint.hub import resolve
from pretrain.cli import InputError

LOG = logging.getLogger(__name__)
CHUNK = 256
"""Posts whose pictures are decoded at a time: what memory and temporary disk hold."""
MOST_ROWS = 2048
"""Pairs of entities likewise."""
Wanted = tuple[Post, Span | None, Span | None]
"""A post, and head and tail (tokens) where a relation is asked for."""


@dataclass(frozen=True)
class Bad:
    """In the place of a post or of its answer: what is wrong with it."""

    error: str


def posts_task(info: TaskInfo, rows: Sequence[Row], folder: Path) -> Task:
    """A task of the run's class whose one split is these rows, without labels.

    Args:
        folder: where the pictures lie, and side inputs that were made for these rows.
    """
    task_class = registry.load("tasks", info.name)

    class Posts(task_class):
        """Reads nothing: the rows are given."""

        def __init__(self) -> None:
            self.folder, self.info = folder, info
            self.relation2id = {label: i for i, label in enumerate(info.labels)}

        def split_file(self, split: str) -> Path | None:
            return Path("the post")

        def image_folder(self, split: str) -> Path:
            return folder

        def read(self, split: str) -> list[Row]:
            return list(rows)

        def encode(self, rows: Sequence[Any], tokenizer: Any, max_length: int) -> dict[str, Column]:
            columns = super().encode(rows, tokenizer, max_length)
            del columns["labels"]  # placeholders: nobody knows them
            return columns

    return Posts()


class Run:
    """One finished seed, and how its posts become inputs."""

    def __init__(self, source: str, live: LiveInputs, precision: str, batch_size: int) -> None:
        self.directory = best_seed(source)
        model = self.directory / "model" if (self.directory / "model").is_dir() else self.directory
        self.method, self.tokenizer, self.description = checkpoint.load_method(model)
        self.method.to(distributed.device())
        task = self.description["task"]
        lists = {key: tuple(task[key]) for key in ("labels", "extra_tokens")}
        self.info = TaskInfo(task["name"], task["kind"], **lists)
        self.live, self.batch_size = live, batch_size
        self.precision = pick_precision(precision)
        self.inputs = check_needs(self.method, self.description["inputs"], live, source)
        self.temperature = 1.0
        if self.info.kind == "relation":
            found = calibration.of_seed(self.directory, self.info.labels)
            if found is None:
                LOG.warning("%s: no pred_dev.jsonl; probabilities are not calibrated", source)
            else:
                self.temperature = found.temperature

    def row(self, number: int, wanted: Wanted, name: str | None) -> Row:
        """A post as a row of the run's task, its picture called `name`; the label is a
        placeholder."""
        post, head, tail = wanted
        if self.info.kind == "relation":
            return RelationRow(
                row=number, image_id=name, tokens=post.tokens, head=head, tail=tail,
                relation=self.info.labels[0],
            )  # fmt: skip
        return NERRow(row=number, image_id=name, tokens=post.tokens, tags=("O",) * len(post.tokens))

    def answers(self, wanted: Sequence[Wanted]) -> list[tuple[Any, np.ndarray | None] | Bad]:
        """(answer, calibrated probabilities) of each post; where one cannot be read, why.

        What a provider refuses is found by halving: the others of the chunk are not lost.
        """
        if not wanted:
            return []
        half = len(wanted) // 2
        if len(wanted) > MOST_ROWS:
            return self.answers(wanted[:half]) + self.answers(wanted[half:])
        try:
            with tempfile.TemporaryDirectory(prefix="posts-") as scratch:
                return self._answers(wanted, Path(scratch))
        except InputError as error:
            if len(wanted) == 1:
                return [Bad(reason(error, wanted[0][0]))]
            return self.answers(wanted[:half]) + self.answers(wanted[half:])

    def _answers(
        self, wanted: Sequence[Wanted], scratch: Path
    ) -> list[tuple[Any, np.ndarray | None]]:
        names: dict[Any, str | None] = {(None, None): None}
        rows = []
        for number, one in enumerate(wanted):
            shown = (one[0].image, one[0].caption if one[0].image else None)
            if shown not in names:  # one decoding for all pairs of a post
                names[shown] = f"{number}.picture"
                (scratch / f"{number}.picture").symlink_to(one[0].image)
            rows.append(self.row(number, one, names[shown]))
        task = posts_task(self.info, rows, scratch)
        options = InputOptions(**self.inputs, cache=scratch / "cache")
        options = self.live.make(options, self.method, task, [post for post, _, _ in wanted])
        loaded = load_split(task, "test", self.tokenizer, self.method, options)
        found = predict(self.method, task, loaded, self.precision, self.batch_size)
        if found.probabilities is None:
            return [(answer, None) for answer in found.answers]
        shares = calibration.sharpen(np.array(found.probabilities), self.temperature)
        return list(zip(found.answers, shares, strict=True))


def best_seed(source: str) -> Path:
    """The seed directory of a run with the best dev F1, or the model directory itself."""
    path = Path(source)
    if (path / "method.json").is_file():
        return path.parent if (path.parent / "pred_dev.jsonl").is_file() else path
    if not path.exists():
        try:
            return Path(resolve(source))
        except InputError as error:
            raise InputError(
                f"{source}: no such run, and no model within reach ({error})"
            ) from None
    found = seed_directories(path)
    if len(found) == 1:
        return found[0]
    best = max(found, key=dev_f1)
    LOG.info("%s: of %d seeds, %s has the best dev F1", source, len(found), best.name)
    return best


def dev_f1(seed: Path) -> float:
    """The score that chose the seed's epoch."""
    path = seed / "result.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["dev"]["f1"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged ({error!r})") from None


def reason(error: InputError, post: Post) -> str:
    """An error of a provider in the words of a post."""
    if post.image is not None:
        try:
            with Image.open(post.image) as picture:
                picture.load()
        except (OSError, ValueError, SyntaxError) as damage:
            return f"image {post.image}: no readable picture ({damage})"
    return str(error).removeprefix("row 0: ")


class Extractor:
    """Relations or entities of posts. `from_pretrained`, then call it."""

    def __init__(self, run: Run, ner: Run | None = None) -> None:
        self.run, self.ner = run, ner
        self.task = run.info.name if ner is None else ner.info.name

    @classmethod
    def from_pretrained(
        cls,
        run: str | Path,
        *,
        ner: str | Path | None = None,
        precision: str = "auto",
        batch_size: int = 64,
        live: LiveInputs | None = None,
    ) -> "Extractor":
        """A run directory, one seed's, or its model directory (also by hub id).

        Args:
            ner: a run that finds entities; then every ordered pair of them is scored where a post
                names no head and tail.
            precision: auto, bf16 or fp32.
            live: what makes regions; None: none can be made.

        Raises:
            InputError: no such run, or inputs that cannot be made for new posts.
        """
        live = live or LiveInputs()
        relations = Run(str(run), live, precision, batch_size)
        if ner is None:
            return cls(relations)
        if relations.info.kind != "relation":
            raise InputError(f"--ner: {run} finds entities itself; give a run that finds relations")
        finder = Run(str(ner), live, precision, batch_size)
        if finder.info.kind != "entities":
            raise InputError(f"--ner {ner}: that run finds relations, not entities")
        return cls(relations, finder)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        head: Any = None,
        tail: Any = None,
        image: str | Path | Image.Image | None = None,
        caption: str | None = None,
        top_k: int = 3,
    ) -> dict[str, Any]:
        """What `predict` writes of one post.

        Args:
            text: the post, or its tokens.
            head, tail: words that occur once, or [start, end) in characters (tokens of tokens).
            image: a file, or a picture.

        Raises:
            InputError: a post that cannot be read.
        """
        record = {"text" if isinstance(text, str) else "tokens": text}
        record |= {"head": head, "tail": tail, "caption": caption}
        if not isinstance(text, str):
            record["tokens"] = list(text)
        with tempfile.TemporaryDirectory(prefix="picture-") as folder:
            if isinstance(image, Image.Image):
                image.convert("RGB").save(Path(folder) / "given.png")
                image = Path(folder) / "given.png"
            record["image"] = image
            post = parse_post(record, Path(), self.task)
            (answer,) = self.answer([post], top_k)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer

    def stream(
        self, posts: Iterable[Post | Bad], top_k: int = 3, chunk: int = CHUNK
    ) -> Iterator[dict[str, Any]]:
        """An answer a post, in their order; `{"error": …}` for a bad one. Memory holds a chunk."""
        posts = iter(posts)
        while some := list(islice(posts, chunk)):
            yield from self.answer(some, top_k)

    def answer(self, posts: Sequence[Post | Bad], top_k: int = 3) -> list[dict[str, Any]]:
        """The answers of one chunk."""
        answers: list[dict[str, Any]] = [
            {"error": post.error} if isinstance(post, Bad) else {} for post in posts
        ]
        good = [i for i, post in enumerate(posts) if isinstance(post, Post)]
        for i in good:
            if posts[i].id is not None:
                answers[i]["id"] = posts[i].id
        if self.run.info.kind == "entities":
            self._entities(self.run, posts, good, answers)
            return answers
        given = [i for i in good if posts[i].head is not None]
        wanted = [(i, posts[i].head, posts[i].tail) for i in given]
        for (i, *_), relation in zip(wanted, self._relations(posts, wanted, top_k), strict=True):
            answers[i] |= relation
        open_ones = [i for i in good if posts[i].head is None]
        if self.ner is None:
            for i in open_ones:
                answers[i]["error"] = "no head and tail; give them, or --ner RUN to find entities"
            return answers
        found = self._entities(self.ner, posts, open_ones, answers)
        wanted = [(i, *pair) for i in open_ones for pair in permutations(found.get(i, ()), 2)]
        for i in found:
            answers[i]["relations"] = []
        for (i, *_), relation in zip(wanted, self._relations(posts, wanted, top_k), strict=True):
            answers[i]["relations"].append(relation)
        return answers

    def _entities(
        self, run: Run, posts: Sequence[Post], chosen: Sequence[int], answers: list[dict[str, Any]]
    ) -> dict[int, list[Span]]:
        """Fill in `entities` of the chosen posts; returns their spans."""
        spans: dict[int, list[Span]] = {}
        results = run.answers([(posts[i], None, None) for i in chosen])
        for i, result in zip(chosen, results, strict=True):
            if isinstance(result, Bad):
                answers[i]["error"] = result.error
                continue
            found = [(kind, (first, last + 1)) for kind, first, last in entities(result[0])]
            answers[i]["entities"] = [
                {**posts[i].mention(span), "type": kind, "words": list(span)}
                for kind, span in found
            ]
            spans[i] = [span for _, span in found]
        return spans

    def _relations(
        self, posts: Sequence[Post], wanted: Sequence[tuple[int, Span, Span]], top_k: int
    ) -> Iterator[dict[str, Any]]:
        """The relation of each pair; `wanted` are (post, head, tail)."""
        results = self.run.answers([(posts[i], head, tail) for i, head, tail in wanted])
        labels = self.run.info.labels
        none = next((name for name in NO_RELATION if name in labels), None)
        for (i, head, tail), result in zip(wanted, results, strict=True):
            mentions = {"head": posts[i].mention(head), "tail": posts[i].mention(tail)}
            if isinstance(result, Bad):
                yield {**mentions, "error": result.error}
                continue
            answer, shares = result
            order = np.argsort(-shares, kind="stable")[: max(top_k, 1)]
            top = [
                {"relation": labels[label], "probability": round(float(shares[label]), 4)}
                for label in order
            ]
            share = round(float(shares[labels.index(answer)]), 4)
            yield {
                **mentions,
                "relation": answer,
                "related": answer != none,
                "probability": share,
                "top": top,
            }
