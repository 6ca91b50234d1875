"""Whose a shard directory is: the options and the input that it was, or is being, built from."""

import json
import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from shards.corpora import Corpus
from shards.files import InputError, atomic_path
from shards.index import ShardIndex, ShardInfo, read_index
from shards.json_files import read_json, write_json
from shards.schema import INDEX_NAME

STATE = ".build"
COMMAND_NAME, OPTIONS_NAME = "command.txt", "options.json"


class Digested(Protocol):
    """A tar to write, as far as is asked here."""

    @property
    def name(self) -> str:
        """File name."""
        ...

    def digest(self) -> str:
        """Of its rows."""
        ...

    def stamps(self) -> dict[str, str]:
        """Of its pictures, by their `sizes`, and by `times`, too."""
        ...

    def contents(self) -> str:
        """Of their bytes, which are read."""
        ...


def claim(directory: Path, options: dict[str, Any]) -> ShardIndex | None:
    """The index of a directory that was built with these options; None: not built to its end.

    Raises:
        InputError: it holds, or an interrupted build prepares, something else.
    """
    options = json.loads(json.dumps(options))
    state, index = directory / STATE / OPTIONS_NAME, None
    if (directory / INDEX_NAME).exists():
        index = read_index(directory)
        held = index.provenance.get("options") or {}
    elif state.exists():
        held = read_json(state, "delete the folder and build again")
    else:
        foreign = sorted(path.name for path in directory.glob("*.tar"))
        if foreign:
            raise InputError(f"{directory}: holds {foreign[0]} but no index; choose an empty --out")
        held = options
    if held != options:
        names = sorted(k for k in {*held, *options} if held.get(k) != options.get(k))
        changed = ", ".join(f"{k}: {held.get(k)} there, {options.get(k)} asked" for k in names)
        raise InputError(
            f"{directory}: holds another build ({changed}); delete it or choose another --out"
        )
    return index


def require_same_input(
    directory: Path, index: ShardIndex, corpus: Corpus, tasks: Iterable[Digested]
) -> None:
    """Refuse to call a build of other raw rows, or of other pictures, the one that was asked for.

    Raises:
        InputError: says what changed. Nothing is rewritten unasked: columns and runs hang on it.
    """
    ways = "build into another --out, or delete this one first"
    raw = len(corpus.rejects)
    if index.rows != corpus.rows:
        raise InputError(
            f"{directory}: built from {index.rows:,} rows, now there are {corpus.rows:,}; {ways}"
        )
    # Fewer tell nothing: among those of then are pictures that could not be decoded.
    if raw > index.rejects:
        raise InputError(
            f"{directory}: built with {index.rejects:,} rejects, now {raw:,} rows cannot be used, "
            f"the first: {corpus.where(corpus.rejects[0].row)}: {corpus.rejects[0].reason}; {ways}"
        )
    for task in tasks:
        state = directory / STATE / f"{task.name}.json"
        if state.is_file():
            saved = read_json(state, "delete it and build again")
            if saved.get("digest") != task.digest():
                what = "rows or captions changed, or pictures came or went"
            elif not same_pictures(saved, task):
                what = f"pictures of {task.name} changed"
            else:
                continue
            raise InputError(f"{directory}: since it was built {what}; {ways}")


def same_pictures(saved: dict[str, Any], task: Digested) -> bool:
    """Whether a tar's pictures are those that it was written from; those of other times but the
    same sizes, as copies have, are read."""
    stamps = task.stamps()
    if saved.get("times") == stamps["times"] or "pictures" not in saved:  # as old builds have it
        return True
    if saved["pictures"] != stamps["sizes"]:
        return False
    return "contents" not in saved or saved["contents"] == task.contents()


def start(directory: Path, options: dict[str, Any], command: str) -> None:
    """Write what a build that begins was asked for; the folder counts as unfinished from now on."""
    write_json(directory / STATE / OPTIONS_NAME, options, checksum=True)
    (directory / INDEX_NAME).unlink(missing_ok=True)  # it would call a broken folder complete
    with atomic_path(directory / STATE / COMMAND_NAME) as temporary:
        temporary.write_text(command, encoding="utf-8")


def build_command(directory: Path) -> str:
    """The command that wrote a directory, to be run again where a tar was lost.

    Its words are quoted anew: whoever recorded it gets no other command run. `--out` is where the
    directory lies now; it may have been moved.
    """
    try:
        words = shlex.split((directory / STATE / COMMAND_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        words = []
    if words[:4] == ["python", "-m", "shards", "build"]:
        return shlex.join(_moved(words, str(directory)))
    if words[:4] == ["python", "-m", "shards", "convert"] and len(words) == 6:
        return shlex.join([*words[:5], str(directory)])
    return f"python -m shards build … --out {shlex.quote(str(directory))}"


def _moved(words: list[str], out: str) -> list[str]:
    moved, own = [], False
    for word in words:
        moved.append(out if own else f"--out={out}" if word.startswith("--out=") else word)
        own = word == "--out"
    return moved


def is_whole(path: Path, info: ShardInfo) -> bool:
    """Whether a tar is there in full; its bytes are `verify`'s."""
    return path.is_file() and path.stat().st_size == info.bytes
