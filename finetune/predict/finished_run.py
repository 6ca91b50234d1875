"""A finished seed, and how posts become its inputs.

Posts become rows of a task of the kind that the run was trained on, and then take the road of
training and evaluation: the task's `encode`, `inputs.load_split`, `evaluate.predict`.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from finetune import registry
from finetune.inputs.load import load_split
from finetune.inputs.spec import FrozenVision, InputSpec, See
from finetune.inputs.split import InputOptions
from finetune.methods.base import Method
from finetune.predict.live_inputs import LiveInputs, check_needs, reads_captions
from finetune.run import calibration, chain_calibration
from finetune.run.chain_calibration import chain_of
from finetune.run.evaluate import pick_precision, predict
from finetune.run.open_run import open_run
from finetune.tasks.base import Column, Row, Task, TaskInfo
from finetune.tasks.mnre import RelationRow
from finetune.tasks.posts import BadPost as Bad
from finetune.tasks.posts import Post
from finetune.tasks.spans import Span
from finetune.tasks.twitter import NERRow
from shards.files import InputError
from shards.images import RejectedImage, decoded

LOG = logging.getLogger(__name__)
MOST_ROWS = 512
"""Posts, or pairs of their entities, whose pictures and regions are held at a time."""
FEW_ROWS = 20
"""Of dev: a temperature of fewer is said to be a guess."""
Question = tuple[Post, Span | None, Span | None]
"""A post, and head and tail (tokens) where a relation is asked for."""


def posts_task(info: TaskInfo) -> Callable[[Sequence[Row]], Task]:
    """Rows -> a task of the run's class whose one split they are, without labels.

    Rows name their pictures by whole paths.
    """
    task_class: Any = registry.load("tasks", info.name)

    class Posts(task_class):  # type: ignore[misc]  # a class known when the run is
        """Reads nothing: the rows are given."""

        def __init__(self, rows: Sequence[Row]) -> None:
            self.folder, self.info, self.rows = Path("/"), info, rows
            self.relation2id = {label: i for i, label in enumerate(info.labels)}

        def split_file(self, split: str) -> Path | None:
            return Path("the post")

        def image_folder(self, split: str) -> Path:
            return self.folder

        def read(self, split: str) -> list[Row]:
            return list(self.rows)

        def encode(self, rows: Sequence[Any], tokenizer: Any, max_length: int) -> dict[str, Column]:
            columns = super().encode(rows, tokenizer, max_length)
            del columns["labels"]  # placeholders: nobody knows them
            # Said in the answer; tasks of other packages may not count.
            self.unread = [int(n) for n in columns.pop("unread", [0] * len(rows))]
            return columns

    return Posts


@dataclass(frozen=True)
class AtHand:
    """A frozen tower that stays loaded from one post to the next."""

    tower: FrozenVision

    @property
    def identity(self) -> str:
        """The tower's."""
        return self.tower.identity

    @cached_property
    def see(self) -> See:
        """Built when the first picture comes."""
        return self.tower()

    def __call__(self) -> See:
        """The tower at work."""
        return self.see


@dataclass(frozen=True)
class Reads:
    """What a method reads, as `load_split` asks it, looked up once."""

    spec: InputSpec

    @staticmethod
    def of(method: Method) -> "Reads":
        """Of a method that does not change any more."""
        spec = method.spec
        tower = None if spec.frozen_vision is None else AtHand(spec.frozen_vision)
        return Reads(replace(spec, frozen_vision=tower))


class Run:
    """One finished seed, and how its posts become inputs."""

    def __init__(
        self,
        source: str,
        live: LiveInputs,
        precision: str,
        batch_size: int,
        relations: Mapping[str, str] | None = None,
    ) -> None:
        seed = open_run(source)
        self.directory, self.description = seed.directory, seed.description
        self.method, self.tokenizer, self.info = seed.method, seed.tokenizer, seed.description.task
        self.live, self.batch_size = live, batch_size
        self.precision = pick_precision(precision)
        self.inputs = check_needs(self.method, seed.description.inputs, live, source)
        self.reads = Reads.of(self.method)
        self.temperature, self.cut_captions = 1.0, 0
        if self.info.kind == "relation":
            fitted = calibration.of_seed(self.directory, self.info.labels)
            if fitted is None:
                LOG.warning(
                    "%s: no two answers in pred_dev.jsonl; probabilities are not calibrated", source
                )
            else:
                self.temperature = fitted.temperature
                if fitted.rows < FEW_ROWS:
                    LOG.warning(
                        "%s: probabilities are calibrated on %d dev rows alone",
                        source,
                        fitted.rows,
                    )
        elif (chain := chain_of(self.method)) is not None:
            if (scaling := chain_calibration.of_seed(self.directory)) is None:
                LOG.warning(
                    "%s: no calibration.json of its pred_dev.jsonl; scores are not calibrated",
                    source,
                )
            else:
                chain.temperature = scaling.temperature
        if relations is not None:  # the temperature of those that it was trained on stays
            self.method.answer_with(relations, self.tokenizer)
            self.info = replace(self.info, labels=tuple(relations))
        self.task = posts_task(self.info)

    def row(self, number: int, question: Question) -> Row:
        """A post as a row of the run's task, its picture by its path; the label is a
        placeholder."""
        post, head, tail = question
        name = None if post.image is None else str(post.image)
        if head is not None and tail is not None:
            return RelationRow(
                row=number, image_id=name, tokens=post.tokens, head=head, tail=tail,
                relation=self.info.labels[0],
            )  # fmt: skip
        return NERRow(row=number, image_id=name, tokens=post.tokens, tags=("O",) * len(post.tokens))

    def with_captions(self, posts: Sequence[Post]) -> list[Post]:
        """The posts as this run reads them: with captions of their pictures where it reads any."""
        wants = reads_captions(self.inputs.get("captions"))
        return self.live.describe(posts) if wants else list(posts)

    def answers(self, questions: Sequence[Question]) -> list[tuple[Any, Any, int] | Bad]:
        """(relation, calibrated probabilities) of each post, or (tags, list of its entities'
        scores, None where the method knows none), and how many word pieces or words of it lie
        beyond the run's max_length; where one cannot be read, why.

        What a provider refuses is found by halving: the others of the chunk are not lost.
        """
        if not questions:
            return []
        posts = self.with_captions([post for post, _, _ in questions])
        questions = [
            (post, head, tail) for post, (_, head, tail) in zip(posts, questions, strict=True)
        ]
        half = len(questions) // 2
        if len(questions) > MOST_ROWS:
            return self.answers(questions[:half]) + self.answers(questions[half:])
        try:
            return self._answers(questions)
        except InputError as error:
            if len(questions) == 1:
                return [Bad(reason(error, questions[0][0]))]
            return self.answers(questions[:half]) + self.answers(questions[half:])

    def say_cut(self) -> None:
        """Warn of captions that were cut since the last time."""
        if self.cut_captions:
            LOG.warning(
                "%d captions (one a post, or a pair of its entities) are longer than the %d word "
                "pieces that %s reads of them, and lose their end",
                self.cut_captions, self.inputs["max_caption_length"], self.directory,
            )  # fmt: skip
        self.cut_captions = 0

    def _answers(self, questions: Sequence[Question]) -> list[tuple[Any, Any, int] | Bad]:
        rows = [self.row(number, question) for number, question in enumerate(questions)]
        posts, slots = [post for post, _, _ in questions], self.reads.spec.region_slots
        given = self.live.make(self.inputs, slots, rows, posts)
        task: Any = self.task(rows)
        options = InputOptions(**self.inputs, cache=None)
        loaded = load_split(task, "test", self.tokenizer, self.reads, options, given)
        self.cut_captions += loaded.cut_captions
        predictions = predict(
            self.method, task, loaded, self.precision, self.batch_size, entity_scores=True
        )
        shares: Any = predictions.probabilities
        if self.info.kind == "relation":
            shares = calibration.sharpen(np.array(shares), self.temperature)
        unread = [0] * len(rows) if self.reads.spec.whole_posts else task.unread
        return list(zip(predictions.answers, shares, unread, strict=True))


def reason(error: InputError, post: Post) -> str:
    """An error of a provider in the words of a post."""
    if post.image is not None:
        try:
            decoded(post.image)
        except RejectedImage as damage:
            return f"image {damage}"
    return str(error).removeprefix("row 0: ")
