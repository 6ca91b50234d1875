"""Whole or not there: atomic files and folders, locks between processes, careful readers."""

import errno
import json
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from shards import files
from shards.files import InputError, atomic_path, refuse_foreign, replace_folder, sweep
from shards.json_files import read_json, read_json_lines, read_lines, write_json
from shards.locks import lock


def tree(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_file_of_somebody_else_is_not_replaced(tmp_path):
    path = tmp_path / "a.tsv"
    refuse_foreign(path, "# {")
    for own in ("", "# {}\n", "<html>"):
        path.write_text(own)
        refuse_foreign(path, "# {", "<html")
    path.write_text("my notes")
    with pytest.raises(InputError, match=r"a\.tsv: not written by this command"):
        refuse_foreign(path, "# {", "<html")
    refuse_foreign(path, "notes", at=3)
    for at in (2, 40):
        with pytest.raises(InputError, match="not written by this command"):
            refuse_foreign(path, "notes", at=at)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_modes_follow_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.unlink()  # as safetensors does: a new file, for its owner alone
            temporary.touch(mode=0o600)
        with replace_folder(tmp_path / "folder") as folder:
            (folder / "b").touch(mode=0o600)
    finally:
        os.umask(before)
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("a", "folder/b", "folder")]
    assert modes == [0o666 & ~umask, 0o666 & ~umask, 0o777 & ~umask]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    write_json(tmp_path / "a.json", {"old": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert tree(tmp_path) == {"a.json": '{\n  "old": 1\n}\n'}


def replace(folder: Path, text: str) -> None:
    with replace_folder(folder) as temporary:
        (temporary / "part").mkdir()
        (temporary / "part" / "one").write_text(text)
        (temporary / "two").write_text(text)


def killed_at(step: int, folder: Path) -> None:
    """`replace` in a process that dies before its `step`-th change of a name."""
    left = step

    def counted(function):
        def run(*args, **kwargs):
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            return function(*args, **kwargs)

        return run

    for name in ("rename", "mkdir", "rmdir", "unlink"):
        setattr(os, name, counted(getattr(os, name)))
    replace(folder, "new")
    os._exit(0)


@pytest.mark.parametrize("step", range(12))
def test_replacing_a_folder_killed_anywhere(tmp_path, step):
    folder = tmp_path / "[model]*"  # a name is no pattern
    replace(folder, "old")
    context = multiprocessing.get_context("fork")
    process = context.Process(target=killed_at, args=(step, folder))
    process.start()
    process.join()
    assert process.exitcode in ((9,) if step < 4 else (0, 9))
    sweep(tmp_path)
    texts = set(tree(folder).values())
    assert len(tree(folder)) == 2 and texts in ({"old"}, {"new"})
    replace(folder, "newest")
    assert tree(tmp_path) == {f"{folder.name}/part/one": "newest", f"{folder.name}/two": "newest"}
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_folder_that_cannot_take_its_name_gives_the_old_one_back(tmp_path, monkeypatch):
    replace(tmp_path / "model", "old")
    rename = os.rename

    def full(source, target):
        if str(target).endswith("/model") and ".old" not in str(source):
            raise OSError(28, "No space left on device", str(target))
        rename(source, target)

    monkeypatch.setattr(files, "_exchange", lambda first, second: False)
    monkeypatch.setattr(files.os, "rename", full)
    with pytest.raises(OSError, match="No space left"):
        replace(tmp_path / "model", "new")
    assert set(tree(tmp_path).values()) == {"old"} and len(list(tmp_path.iterdir())) == 1


def test_two_processes_replace_the_same_folder(tmp_path):
    context = multiprocessing.get_context("fork")
    texts = ["a", "b", "c", "d"]
    jobs = [context.Process(target=replace, args=(tmp_path / "model", text)) for text in texts]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [job.exitcode for job in jobs] == [0] * 4
    assert len(set(tree(tmp_path / "model").values())) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_sweep_removes_what_is_dead_and_leaves_what_is_alive(tmp_path):
    (tmp_path / ".out.json.0123abcd.tmp").touch()
    (tmp_path / ".model.0123abcd.tmp" / "deep").mkdir(parents=True)
    (tmp_path / ".gone.0123abcd.old.tmp").mkdir()
    (tmp_path / ".there.0123abcd.old.tmp").mkdir()
    (tmp_path / "there").mkdir()
    os.mkfifo(tmp_path / ".pipe.tmp")
    with atomic_path(tmp_path / "alive"), replace_folder(tmp_path / "growing"):
        sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive", "gone", "growing", "there"]


HOLD = """
import sys
from shards.locks import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_folder(tmp_path):
    process = holder(tmp_path / "out")
    try:
        message = rf"out: pid {process.pid} on \S+ is writing here; "
        with pytest.raises(InputError, match=message), lock(tmp_path / "out"):
            pass
    finally:
        process.communicate()
    with lock(tmp_path / "out"):
        pass
    assert not any((tmp_path / "out").iterdir())


def test_a_killed_process_holds_nothing(tmp_path):
    process = holder(tmp_path)
    process.kill()
    process.communicate()
    assert (tmp_path / ".lock").exists()
    with lock(tmp_path):
        pass
    assert not any(tmp_path.iterdir())


def test_one_of_many_holds_the_lock_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")

    def work() -> None:
        done = 0
        while done < 50:
            try:
                with lock(tmp_path, ".x.lock"):
                    os.mkdir(tmp_path / "alone")  # fails if another holds the lock, too
                    os.rmdir(tmp_path / "alone")
                done += 1
            except InputError:
                pass

    jobs = [context.Process(target=work) for _ in range(3)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join(timeout=60)
    assert [job.exitcode for job in jobs] == [0] * 3


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1', "not valid JSON"),
        (b"\0\0\0\0", "not valid JSON"),
        (b"", "not valid JSON"),
        (b'{"a": "\xff"}', "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[1]", "not a JSON object"),
        (b"null", "not a JSON object"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_read_json_names_the_file_and_what_to_do(tmp_path, content, reason):
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_json(path, "delete it")
    message = str(error.value)
    assert message.startswith(f"{path}: {reason}") and message.endswith("; delete it")
    assert "\n" not in message


def test_lines_end_at_line_feeds_alone(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = ["a\u2028b", "c\x85d", "e\x0bf\x0cg", "h\ri"]
    lines = [json.dumps({"t": text}, ensure_ascii=False) for text in texts]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, "", lines[0]]).encode())
    records = list(read_json_lines(path))
    assert [record["t"] for _, record in records] == [*texts, texts[0]]
    assert [number for number, _ in records] == [1, 2, 3, 4, 6]
    assert next(read_lines(path)) == (1, lines[0])


def test_lines_name_what_is_wrong(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"{}\n{\xe9}\n")
    with pytest.raises(InputError, match="line 2: byte 0xe9 at position 1 is no UTF-8"):
        list(read_lines(path))
    path.write_bytes(b"{}\n{}\n[]\n")
    with pytest.raises(InputError, match="line 3: not a JSON object"):
        list(read_json_lines(path))
    shutil.rmtree(tmp_path)
    with pytest.raises(InputError, match="cannot be read"):
        list(read_lines(path))


def test_json_with_a_checksum_names_every_flipped_bit(tmp_path):
    """Each bit of the file: an error, or the same content."""
    path, content = tmp_path / "a.json", {"f1": 12.5, "rows": [1, None], "b": {"é": "x"}}
    write_json(path, content, checksum=True)
    whole = path.read_bytes()
    assert read_json(path) == content
    refused = 0
    for place in range(8 * len(whole)):
        flipped = bytearray(whole)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(flipped)
        try:
            read = read_json(path)
        except InputError as error:
            assert str(error).startswith(f"{path}: ")
            refused += 1
            continue
        assert {key: read[key] for key in content} == content
    assert refused > 4 * len(whole)


def test_without_locks_only_what_is_old_is_swept(tmp_path, monkeypatch):
    """As on a network file system: nobody can tell whether a young temporary is being written."""
    young, old = tmp_path / ".a.12345678.tmp", tmp_path / ".b.12345678.tmp"
    for path in (young, old):
        path.write_text("")
    os.utime(old, (1, 1))

    def no_locks(handle, flags):
        raise OSError(errno.EBADF, "no locks here")

    monkeypatch.setattr("shards.files.fcntl.flock", no_locks)
    sweep(tmp_path)
    assert young.exists() and not old.exists()
    with atomic_path(tmp_path / "c") as temporary:
        temporary.write_text("whole")
    assert (tmp_path / "c").read_text() == "whole"


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(InputError, match="is a folder"), atomic_path(tmp_path):
        pass
