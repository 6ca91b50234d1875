"""A finished run as a function: post in, relation or entities out.

    from finetune.predict.extractor import Extractor

    extract = Extractor.from_pretrained("runs/promu")
    extract("Bob in Oslo", head="Bob", tail="Oslo", image="17.jpg")

    extract = Extractor.from_pretrained("runs/promu", ner="runs/twitter")   # finds the entities too
    extract("Bob in Oslo", image="17.jpg")

The run behind it, and how a post becomes its inputs: `finished_run.py`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice, permutations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from finetune.predict.finished_run import Bad, Run
from finetune.predict.live_inputs import LiveInputs
from finetune.tasks.metrics import entities
from finetune.tasks.posts import Post, parse_post
from finetune.tasks.spans import Span
from shards.files import InputError
from shards.images import upright_rgb
from shards.options import positive

CHUNK = 256
"""Posts whose pictures are decoded at a time."""


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
        relations: Mapping[str, str] | None = None,
    ) -> "Extractor":
        """A run directory, one seed's, or its model directory (also by hub id).

        Args:
            ner: a run that finds entities; then every ordered pair of them is scored where a post
                names no head and tail.
            precision: auto, bf16 or fp32.
            live: what makes regions; None: none can be made.
            relations: instead of those of training, name -> description: runs of retrieval.

        Raises:
            InputError: no such run, or inputs that cannot be made for new posts.
        """
        positive("", batch_size=batch_size)
        live = live or LiveInputs()
        extractor = Run(str(run), live, precision, batch_size, relations)
        if ner is None:
            return cls(extractor)
        if extractor.info.kind != "relation":
            raise InputError(f"--ner: {run} finds entities itself; give a run that finds relations")
        finder = Run(str(ner), live, precision, batch_size)
        if finder.info.kind != "entities":
            raise InputError(f"--ner {ner}: that run finds relations, not entities")
        return cls(extractor, finder)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        head: Any = None,
        tail: Any = None,
        image: str | Path | Image.Image | None = None,
        caption: str | None = None,
        top_k: int = 3,
        offsets: str | None = None,
    ) -> dict[str, Any]:
        """What `predict` writes of one post.

        Args:
            text: the post, or its tokens.
            head, tail: words that occur once, or [start, end) in characters (tokens of tokens), or
                {"start", "end", "text"}: both, compared.
            offsets: what positions count: characters (code points), utf-16 or bytes.
            image: a file, or a picture.

        Raises:
            InputError: a post that cannot be read.
        """
        words = {"tokens": list(text)} if isinstance(text, list | tuple) else {"text": text}
        record: dict[str, Any] = {**words, "head": head, "tail": tail, "caption": caption}
        record["offsets"] = offsets
        picture = image if isinstance(image, Image.Image) else None
        with TemporaryDirectory(prefix="picture-") if picture else nullcontext("") as folder:
            if picture is not None:  # as a BMP: no bit is lost, and nothing is squeezed
                image = Path(folder) / "given.bmp"
                upright_rgb(picture).save(image)
            post = parse_post(record | {"image": image}, Path(), self.task)
            (answer,) = self.stream([post], top_k)
        if "error" in answer:
            raise InputError(answer["error"])
        return answer

    def stream(
        self, posts: Iterable[Post | Bad], top_k: int = 3, chunk: int = CHUNK
    ) -> Iterator[dict[str, Any]]:
        """An answer a post, in their order; `{"error": …}` for a bad one. Memory holds a chunk."""
        positive("", top_k=top_k, chunk=chunk)
        rest = iter(posts)
        while posts := list(islice(rest, chunk)):
            yield from self.answer(posts, top_k)
        for run in filter(None, (self.run, self.ner)):
            run.say_cut()

    def answer(self, posts: Sequence[Post | Bad], top_k: int = 3) -> list[dict[str, Any]]:
        """The answers of one chunk."""
        positive("", top_k=top_k)
        answers: list[dict[str, Any]] = [
            {"error": post.error} if isinstance(post, Bad) else {} for post in posts
        ]
        for post, answer in zip(posts, answers, strict=True):
            if post.id is not None:
                answer["id"] = post.id
        readable = {i: post for i, post in enumerate(posts) if isinstance(post, Post)}
        if self.run.info.kind == "entities":
            self._entities(self.run, readable, answers)
            return answers
        pairs = [
            (i, post.head, post.tail) for i, post in readable.items() if post.head and post.tail
        ]
        for (i, *_), relation in zip(pairs, self._relations(readable, pairs, top_k), strict=True):
            answers[i] |= relation
        # `parse_post` takes both entities or neither.
        without_pair = {i: post for i, post in readable.items() if post.head is None}
        if self.ner is None:
            for i in without_pair:
                answers[i]["error"] = "no head and tail; give them, or --ner RUN to find entities"
            return answers
        spans = self._entities(self.ner, without_pair, answers)
        for i in spans:
            answers[i]["relations"] = []
        pairs = [(i, *pair) for i in spans for pair in permutations(spans[i], 2)]
        for (i, *_), relation in zip(pairs, self._relations(readable, pairs, top_k), strict=True):
            answers[i]["relations"].append(relation)
        return answers

    def _entities(
        self, run: Run, posts: Mapping[int, Post], answers: list[dict[str, Any]]
    ) -> dict[int, list[Span]]:
        """Fill in `entities` of these posts; returns their spans.

        `score` is the probability of exactly this span and type, at the temperature that was fitted
        on dev where the run has one; null where its method gives none. `cut` and `words_not_read`
        say that the post is longer than the run reads.
        """
        spans: dict[int, list[Span]] = {}
        results = run.answers([(post, None, None) for post in posts.values()])
        for (i, post), result in zip(posts.items(), results, strict=True):
            if isinstance(result, Bad):
                answers[i]["error"] = result.error
                continue
            tags, scores, unread = result
            typed_spans = [(kind, (first, last + 1)) for kind, first, last in entities(tags)]
            answers[i]["entities"] = [
                {**post.mention(span), "type": kind, "words": list(span),
                 "score": None if score is None else round(score, 4)}
                for (kind, span), score in zip(typed_spans, scores, strict=True)
            ]  # fmt: skip
            if unread:
                answers[i] |= {"cut": True, "words_not_read": unread}
            spans[i] = [span for _, span in typed_spans]
        return spans

    def _relations(
        self, posts: Mapping[int, Post], pairs: Sequence[tuple[int, Span, Span]], top_k: int
    ) -> Iterator[dict[str, Any]]:
        """The relation of each pair, which is (post, head, tail). `cut`: of a post longer than the
        run reads, the words nearest to head and tail were read."""
        results = self.run.answers([(posts[i], head, tail) for i, head, tail in pairs])
        labels = self.run.info.labels
        none = self.run.info.negative
        for (i, head, tail), result in zip(pairs, results, strict=True):
            mentions = {"head": posts[i].mention(head), "tail": posts[i].mention(tail)}
            if isinstance(result, Bad):
                yield {**mentions, "error": result.error}
                continue
            answer, shares, unread = result
            order = np.argsort(-shares, kind="stable")[:top_k]
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
            } | ({"cut": True} if unread else {})
