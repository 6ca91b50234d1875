"""`python -m finetune predict RUN`: one post, or a file of them, through a finished run.

A file is read and answered in chunks, one line out for every line in, in their order; a line that
cannot be read is answered by `{"row": N, "error": "…"}`. With `--out`, what is there after an
interruption is kept and the same command goes on behind it.
"""

import hashlib
import io
import json
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

from tqdm import tqdm

from finetune.predict.done import CAPTIONER, CUT, Done, digest_of, files_read, identity
from finetune.predict.live_options import WEIGHTS, LiveOptions
from finetune.tasks.posts import COLUMNS, TABLES, BadPost, parse_line, read_post, record_of
from shards.files import InputError, file_sha256
from shards.locks import lock_file
from shards.options import parse_config, positive
from shards.processors import commit_of
from shards.records import Refused
from shards.redact import without_secrets
from shards.tables import TableRow, read_table

LOG = logging.getLogger(__name__)
SINGLE = ("head", "tail", "head_span", "tail_span", "image", "caption")
LONGEST_LINE = 1_000_000
"""Bytes; a longer line is a bad row."""


@dataclass(frozen=True, kw_only=True)
class PostOptions:
    """What predict is asked, beside `LiveOptions`, which the help shows after these."""

    run: str
    """Run directory, one seed's, or a fine-tuned model directory or hub id."""
    text: str | None = None
    """One post."""
    head: str | None = None
    """With --text: the head entity, words that occur once."""
    tail: str | None = None
    """With --text: the tail entity."""
    head_span: str | None = None
    """Instead of --head, or beside it: its characters, START:END."""
    tail_span: str | None = None
    """Likewise of the tail."""
    offsets: Literal["characters", "utf-16", "bytes"] | None = None
    """What positions count; characters are code points."""
    image: str | None = None
    """With --text: its picture."""
    caption: str | None = None
    """With --text: what the picture shows, for runs that read captions."""
    input: str | None = None
    """Instead of --text: a file of posts, one JSON object a line, or .csv, .tsv with these columns
    (`finetune/tasks/posts.py`); pictures are relative to its folder."""
    out: str | None = None
    """With --input: where the answers go, resumable; none: standard output."""
    ner: str | None = None
    """A run that finds entities: where a post names no head and tail, every pair is scored."""
    relations: str | None = None
    """For runs of retrieval: a .csv or .tsv with the columns relation and description; the answers
    are of these relations, which training need not have seen."""
    top_k: int = 3
    """Relations shown with their probability."""
    batch_size: int = 64
    """Rows a forward pass."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on CUDA, fp32 on CPU, as fine-tuning and evaluation. A CPU that has bf16 (AMX)
    answers files in it 1.1 to 1.6 times as fast, single posts not; of 2,400 rows of the sample 1 to
    18 got another label."""


@dataclass(frozen=True, kw_only=True)
class PredictConfig(LiveOptions, PostOptions):
    """Relation or entities of new posts, as JSON lines."""

    POSITIONAL: ClassVar = ("run",)

    def __post_init__(self) -> None:
        if (self.text is None) == (self.input is None):
            raise ValueError("give either --text or --input")
        single = [name for name in SINGLE if getattr(self, name)]
        if self.input is not None and single:
            raise ValueError(f"--{single[0]} goes with --text; in a file each post names its own")
        if self.out is not None and self.input is None:
            raise ValueError("--out goes with --input")
        positive(top_k=self.top_k, batch_size=self.batch_size)

    def shaping(self) -> dict[str, Any]:
        """What answers depend on: settings, and digests of input and runs."""
        settings = {k: v for k, v in asdict(self).items() if k not in ("out", "batch_size")}
        settings["input_sha256"] = file_sha256(Path(self.input or ""))
        settings["pictures"] = picture_state(Path(self.input or ""))
        if self.relations:
            settings["relations_sha256"] = file_sha256(Path(self.relations))
        for name in ("run", "ner"):
            if source := getattr(self, name):
                settings[f"{name}_sha256"] = identity(source)
        for name in WEIGHTS:
            if (given := getattr(self, name)) and Path(given).exists():
                settings[f"{name}_sha256"] = digest_of(files_read(Path(given)))
        if self.caption_model and not Path(self.caption_model).exists():
            with suppress(OSError):  # not in the hub's cache yet: known by its name alone
                settings[CAPTIONER] = commit_of(self.caption_model, local_files_only=True)
        return {k: without_secrets(v) if isinstance(v, str) else v for k, v in settings.items()}


def build(config: PredictConfig):
    """The extractor that the settings name."""
    from finetune.methods.retrieval.descriptions import read_descriptions
    from finetune.predict.extractor import Extractor
    from finetune.predict.live_inputs import live_inputs

    return Extractor.from_pretrained(
        config.run,
        ner=config.ner,
        precision=config.precision,
        batch_size=config.batch_size,
        live=live_inputs(config),
        relations=read_descriptions(config.relations) if config.relations else None,
    )


def posts_of(source: Path, task: str, offsets: str | None) -> Iterator[Any]:
    """The posts of a table or of JSON lines; `BadPost` in the place of a row that is none."""
    if source.suffix.lower() in TABLES:
        table = read_table(source, ("text",))
        if unread := [name for name in table.columns if name not in COLUMNS]:
            LOG.warning("%s: columns not read: %s", source, ", ".join(unread))
        for row in table.rows:
            if isinstance(row, Refused):
                yield BadPost(f"line {row.line}: {row.reason}")
            else:
                cells = {name: row.fields[name] for name in row.fields if name in COLUMNS}
                yield read_post(record_of(cells), source.parent, task, offsets)
        return
    with source.open("rb") as file:
        yield from read_posts(file, source.parent, task, offsets)


def read_posts(file: BinaryIO, base: Path, task: str, offsets: str | None) -> Iterator[Any]:
    """A post a line; `BadPost` for a line that is none. Only one line is held."""
    while line := file.readline(LONGEST_LINE + 1):
        if len(line) > LONGEST_LINE and not line.endswith(b"\n"):
            while (rest := file.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                pass
            yield BadPost(f"a line of more than {LONGEST_LINE} bytes")
            continue
        yield parse_line(line, base, task, offsets)


def picture_state(source: Path) -> str:
    """A digest of sizes and times of the pictures that a file of posts names: none is opened."""
    state = hashlib.sha256()
    for name in image_names(source):
        try:
            status = (source.parent / name).stat()
            state.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        except (OSError, ValueError):  # gone, or no path
            state.update(b"-\n")
    return state.hexdigest()


def image_names(source: Path) -> Iterator[str]:
    """`image` of each row that has one."""
    if source.suffix.lower() in TABLES:
        rows = read_table(source, ("text",)).rows
        yield from (
            row.fields["image"]
            for row in rows
            if isinstance(row, TableRow) and "image" in row.fields
        )
        return
    with source.open("rb") as file:
        for line in file:
            if len(line) <= LONGEST_LINE:
                with suppress(ValueError, RecursionError):  # answered in its place
                    record = json.loads(line)
                    if isinstance(record, dict) and isinstance(record.get("image"), str):
                        yield record["image"]


def count_lines(path: Path) -> int:
    """Posts of a file: rows of a table, else lines, an unfinished last one included."""
    if path.suffix.lower() in TABLES:
        return len(read_table(path, ("text",)).rows)
    lines, end = 0, b"\n"
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            lines, end = lines + block.count(b"\n"), block[-1:]
    return lines + (end != b"\n")


def predict_file(config: PredictConfig) -> dict[str, int]:
    """Answer every line; returns how many there are, and how many were bad."""
    source = Path(config.input or "")
    if not source.is_file():
        raise InputError(f"--input {source}: no such file")
    with nullcontext() if config.out is None else lock_file(config.out):
        return _predict_file(config, source)


def _predict_file(config: PredictConfig, source: Path) -> dict[str, int]:
    total = count_lines(source)
    done = Done.none() if config.out is None else Done.find(Path(config.out), config.shaping())
    if done.finished:
        LOG.info("%s: finished already", config.out)
        if done.bad == total > 0:
            raise InputError(
                f"{source}: none of its {total} rows can be read; {config.out} says why of each"
            )
        return {"rows": total, "bad": done.bad}
    extractor = build(config)  # before the output is touched: a wrong run leaves nothing behind
    precision = extractor.run.precision
    slower = config.precision == "auto" and precision == "fp32"
    hint = " (bf16 is faster on a CPU that has it: --help)" if slower else ""
    LOG.info("precision: %s%s", precision, hint)
    bad, cut = done.bad, done.cut
    row, first_error = done.rows - 1, ""
    with done.open() as write:
        posts = islice(posts_of(source, extractor.task, config.offsets), done.rows, None)
        answers = extractor.stream(posts, config.top_k)
        bar = tqdm(answers, initial=done.rows, total=total, unit=" posts", disable=None)
        for row, answer in enumerate(bar, start=done.rows):
            bad += "error" in answer
            first_error = first_error or answer.get("error", "")
            line = json.dumps({"row": row, **answer}, ensure_ascii=False)
            cut += CUT.decode() in line
            write(line)
    if row + 1 != total:
        raise InputError(f"{source}: {total} posts, {row + 1} answers: it changed; start anew")
    done.finish()
    if total and bad == total and first_error:
        raise InputError(
            f"{source}: none of its {total} rows can be read; the first: {first_error}"
        )
    LOG.info(
        "%d posts, %d of them could not be read, %d are longer than the run reads (cut)",
        total, bad, cut,
    )  # fmt: skip
    return {"rows": total, "bad": bad}


def run(config: PredictConfig) -> None:
    """`python -m finetune predict`"""
    for name in ("finetune.inputs.load", "transformers"):  # they speak of every chunk
        logging.getLogger(name).setLevel(logging.WARNING)
    if isinstance(sys.stdout, io.TextIOWrapper):  # JSON is UTF-8, whatever the terminal's locale
        sys.stdout.reconfigure(encoding="utf-8")
    if config.input is not None:
        predict_file(config)
        return
    answer = build(config)(
        config.text,
        head=entity("head", config.head, config.head_span),
        tail=entity("tail", config.tail, config.tail_span),
        offsets=config.offsets,
        image=config.image,
        caption=config.caption,
        top_k=config.top_k,
    )
    print(json.dumps(answer, ensure_ascii=False))


def entity(name: str, words: str | None, span: str | None) -> Any:
    """An entity of the command line as a post has it: words, or positions, or both."""
    if span is None:
        return words
    if not (ends := re.fullmatch("([0-9]{1,9}):([0-9]{1,9})", span)):
        raise InputError(f"--{name}-span {span}: expected START:END, two numbers of characters")
    return {"start": int(ends[1]), "end": int(ends[2])} | ({"text": words} if words else {})


def main(argv: Sequence[str]) -> None:
    """python -m finetune predict RUN"""
    prog = "python -m finetune predict"
    post = '--text "Bob in Oslo" --head Bob --tail Oslo --image 17.jpg'
    run(parse_config(PredictConfig, argv, prog=prog, example=f"{prog} RUN {post}"))
