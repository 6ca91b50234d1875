"""Every operation on the disk below a folder, numbered; one of them is killed at or fails.

`python tests/faults.py` is a server that has imported the product once: it takes a JSON list a
line and forks a child for each command in it, so that hundreds of commands take a fraction of a
second each.
What is counted: every open that makes or cuts a file, write, rename, link, unlink, mkdir, rmdir,
truncate, fsync, and each call of safetensors, PyTorch and tokenizers that writes a file past
Python. What changes nothing, such as a mkdir of what is there, is not.
"""

import builtins
import errno
import gc
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

KILLED = 137
MODES = ("kill", "ENOSPC", "EIO")
SHOWN = re.compile(r"^error: [^\n]+$", re.MULTILINE)
TIMES = re.compile(
    rb'("(?:seconds|samples_per_second|data_wait_percent|teraflops|memory_gib|mfu_percent)": )'
    rb"[-+.e0-9]+|\"_crc32\": \"\w+\"|\d+(?:\.\d+)? (?:s|seconds|samples/s)\b"
)
"""What no two runs share."""
LOGS = ("tensorboard", "log.txt")
"""What tells of the interruption itself."""
WARM = (
    "finetune.run.train", "finetune.run.evaluate", "finetune.predict.command",
    "finetune.report.command", "finetune.report.study", "finetune.data.regions",
    "finetune.data.views", "finetune.data.own_data", "finetune.predict.extractor",
    "finetune.predict.live_inputs", "finetune.methods.promu", "finetune.methods.mtb",
    "finetune.report.figures", "finetune.report.sections", "matplotlib.pyplot",
    "pretrain.train", "pretrain.checkpoint.conversion", "pretrain.__main__", "shards.__main__",
    "shards.write", "shards.objects", "torch.utils.tensorboard", "webdataset",
    "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
    "transformers.models.auto.tokenization_auto", "torch._dynamo", "torch.utils.serialization",
    "finetune.console", "finetune.run.command", "pretrain.convert", "shards.build",
    "safetensors.numpy", "jsonargparse", "docstring_parser", "multiprocessing.synchronize",
    "numpy.ctypeslib", "matplotlib.backends.backend_agg",
)  # fmt: skip


# ---- in the child ------------------------------------------------------------------------------


class Disk:
    """Counts operations below `root`; the `point`-th one (from 1) is what `mode` says."""

    def __init__(self, root: Path, point: int, mode: str) -> None:
        self.root, self.point, self.mode = f"{root}/", point, mode
        self.count, self.log, self.full = 0, [], False

    def below(self, path: Any, dir_fd: int | None = None) -> bool:
        """Whether `path` lies below the root."""
        if isinstance(path, int):
            try:
                path = os.readlink(f"/proc/self/fd/{path}")
            except OSError:
                return False
        text = os.fsdecode(path)
        if dir_fd is not None and not os.path.isabs(text):
            text = f"{os.readlink(f'/proc/self/fd/{dir_fd}')}/{text}"
        return f"{os.path.abspath(text)}/".startswith(self.root)

    def happens(self, name: str, path: Any, grows: bool, torn: Callable[[], Any] | None = None):
        """One operation; returns, dies or raises. `torn` does the half of it."""
        self.count += 1
        self.log.append(f"{name} {os.path.basename(str(path))}")
        if self.mode == "ENOSPC" and self.full and grows:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *self.named(path))
        if self.count != self.point:
            return
        if torn:
            torn()
        if self.mode == "kill":
            os._exit(KILLED)
        self.full = True
        number = getattr(errno, self.mode)
        raise OSError(number, os.strerror(number), *self.named(path))

    @staticmethod
    def named(path: Any) -> tuple[str, ...]:
        """The path as an `OSError` names it; a write names none."""
        return () if isinstance(path, int) else (os.fspath(path),)

    def install(self) -> None:
        """Wrap what writes, for the rest of this process."""
        for name in ("unlink", "remove", "rmdir"):
            self.wrap(name, grows=False)
        for name in ("mkdir", "truncate", "ftruncate", "fsync", "posix_fallocate", "chmod"):
            self.wrap(name, grows=name in ("mkdir", "posix_fallocate"))
        for name in ("rename", "replace", "link"):
            self.wrap_two(name)
        self.wrap_open()
        self.wrap_write()
        self.wrap_files()
        self.wrap_native()

    def wrap(self, name: str, grows: bool) -> None:
        real = getattr(os, name)

        def call(path, *args, **options):
            place = options.get("dir_fd")
            idle = {"mkdir": True, "unlink": False}.get(name) == there(path, place)
            if not idle and self.below(path, place):
                self.happens(name, path, grows)
            return real(path, *args, **options)

        setattr(os, name, call)

    def wrap_two(self, name: str) -> None:
        real = getattr(os, name)

        def call(source, target, **options):
            if there(source) and (self.below(source) or self.below(target)):
                self.happens(name, target, False)
            return real(source, target, **options)

        setattr(os, name, call)

    def wrap_open(self) -> None:
        real = os.open

        def call(path, flags, *args, **options):
            if self.below(path, place := options.get("dir_fd")):
                made = flags & os.O_CREAT and not there(path, place)
                if made or (flags & os.O_TRUNC and os.path.getsize(path)):
                    self.happens("open", path, True)
            return real(path, flags, *args, **options)

        os.open = call

    def wrap_write(self) -> None:
        for name in ("write", "pwrite"):
            real = getattr(os, name)

            def call(handle, data, *args, real=real, name=name):
                if self.below(handle):
                    half = bytes(data)[: len(data) // 2]
                    self.happens(name, handle, True, lambda: real(handle, half, *args))
                return real(handle, data, *args)

            setattr(os, name, call)

    def wrap_files(self) -> None:
        disk, real = self, io.open

        class Raw(io.FileIO):
            problem = None

            def write(self, data):
                if self.problem:  # the rest of a write of which half found room
                    problem, self.problem = self.problem, None
                    raise problem
                half = bytes(data)[: len(data) // 2]
                try:
                    disk.happens("write", self.fileno(), True, lambda: io.FileIO.write(self, half))
                except OSError as problem:
                    self.problem = problem
                    return len(half)
                return super().write(data)

            def truncate(self, size=None):
                disk.happens("truncate", self.fileno(), False)
                return super().truncate(size)

        def call(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None,
                 closefd=True, opener=None):  # fmt: skip
            if not set(mode) & set("wax+") or not disk.below(file):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            if not isinstance(file, int) and (
                not there(file) or (mode[0] == "w" and os.path.getsize(file))
            ):
                disk.happens("open", file, True)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd, opener)
            if buffering == 0:
                return raw
            size = buffering if buffering > 1 else io.DEFAULT_BUFFER_SIZE
            buffer = (io.BufferedRandom if "+" in mode else io.BufferedWriter)(raw, size)
            if "b" in mode:
                return buffer
            text = io.TextIOWrapper(buffer, encoding, errors, newline, buffering == 1)
            text.mode = mode
            return text

        io.open = builtins.open = call

    def wrap_native(self) -> None:
        """What Rust and C++ write: they open, write half, and say what a full disk makes them."""
        import safetensors.torch
        import torch
        import transformers
        from safetensors import SafetensorError

        import shards.files

        def native(name: str, real: Callable, place: Callable, error: Callable) -> Callable:
            def call(*args, **options):
                path = place(*args, **options)
                if not isinstance(path, str | os.PathLike) or not self.below(path):
                    return real(*args, **options)
                try:
                    self.happens(name, path, True, lambda: real(*args, **options))
                except OSError as problem:
                    raise error(problem) from None
                return real(*args, **options)

            return call

        def rust(problem: OSError) -> Exception:
            reason = f"{problem.strerror} (os error {problem.errno})"
            return SafetensorError(f"Error while serializing: I/O error: {reason}")

        def torch_error(problem: OSError) -> Exception:
            return RuntimeError(
                "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"
            )

        safetensors.torch.serialize_file = native(
            "safetensors",
            safetensors.torch.serialize_file,
            lambda _, filename, **more: filename,
            rust,
        )
        torch.save = native("torch.save", torch.save, lambda _, f, *more, **options: f, torch_error)
        fast = transformers.PreTrainedTokenizerFast
        fast._save_pretrained = native(
            "tokenizers", fast._save_pretrained,
            lambda _, save_directory, **more: save_directory,
            lambda problem: Exception(f"{problem.strerror} (os error {problem.errno})"),
        )  # fmt: skip
        exchange = shards.files._exchange

        def swap(first: Path, second: Path) -> bool:
            if second.exists() and self.below(second):
                self.happens("exchange", second, False)
            return exchange(first, second)

        shards.files._exchange = swap


def there(path: Any, dir_fd: int | None = None) -> bool:
    """Whether a name, or an open file, is there."""
    if isinstance(path, int):
        return True
    try:
        os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except OSError:
        return False
    return True


def child(request: dict[str, Any]) -> None:
    """Run one command in this process, and end it."""
    output = os.open(request["output"], os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    disk = Disk(Path(request["root"]), request["point"], request["mode"])
    disk.install()
    status = 1
    try:
        from finetune.console import main

        main(request["argv"])
        status = 0
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    gc.collect()  # what a command forgot to close is closed
    disk.point, disk.mode = -1, ""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(f"{request['output']}.json", "w") as file:
        json.dump(disk.log, file)
    os._exit(status)


def serve() -> None:
    """Read requests, fork, answer with the exit status."""
    import importlib

    for name in WARM:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # the children look through what they made alone
    print("warm", flush=True)
    for line in sys.stdin:
        pids = []
        for request in json.loads(line):
            pids.append(os.fork())
            if not pids[-1]:
                child(request)
        statuses = [os.waitpid(pid, 0)[1] for pid in pids]
        print(json.dumps([os.waitstatus_to_exitcode(status) for status in statuses]), flush=True)


# ---- in the test -------------------------------------------------------------------------------


class Server:
    """The warm process."""

    def __init__(self, scratch: Path, python: Path) -> None:
        self.output = scratch / "output"
        root = Path(__file__).parents[1]  # before tests/, whose folders are called like packages
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        environment |= {"PYTHONPATH": f"{root}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
        self.process = subprocess.Popen(
            [python, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd=root,
        )  # fmt: skip
        assert self.answer() == "warm"

    def answer(self) -> str:
        """The next line that is the server's own."""
        return self.process.stdout.readline().strip()

    def run(self, argv: list[str], root: Path, point: int = 0, mode: str = "") -> tuple[int, str]:
        """(exit status, what it printed) of a command, its disk failing at an operation."""
        (result,) = self.ask([{"argv": argv, "point": point, "mode": mode}], root)
        return result

    def together(self, commands: list[list[str]], root: Path) -> list[tuple[int, str]]:
        """The same of commands that start at once."""
        return self.ask([{"argv": argv, "point": 0, "mode": ""} for argv in commands], root)

    def ask(self, requests: list[dict[str, Any]], root: Path) -> list[tuple[int, str]]:
        """(exit status, what it printed) of each."""
        for number, request in enumerate(requests):
            output = self.output if number == 0 else Path(f"{self.output}-{number}")
            request |= {"output": str(output), "root": str(root), "cwd": str(root.parent)}
            request.setdefault("umask", 0o022)
        self.process.stdin.write(json.dumps(requests) + "\n")
        self.process.stdin.flush()
        outputs = [Path(request["output"]) for request in requests]
        statuses = json.loads(self.answer())
        texts = [path.read_text(errors="replace") for path in outputs]
        return list(zip(statuses, texts, strict=True))

    def operations(self) -> list[str]:
        """Of the last command that was not killed."""
        return json.loads(Path(f"{self.output}.json").read_text())

    def close(self) -> None:
        """End it."""
        self.process.stdin.close()
        self.process.wait()


def snapshot(root: Path) -> dict[str, bytes]:
    """Path -> content without times."""
    return {
        str(path.relative_to(root)): TIMES.sub(b"TIME", path.read_bytes())
        for path in sorted(root.rglob("*"))
        if path.is_file() and not set(path.relative_to(root).parts) & set(LOGS)
    }


def differences(expected: dict[str, bytes], found: dict[str, bytes]) -> list[str]:
    """What is lost, left over, or another."""
    lost = [f"lost {name}" for name in expected if name not in found]
    over = [f"left over {name}" for name in found if name not in expected]
    other = [f"differs {n}" for n in expected if n in found and found[n] != expected[n]]
    return lost + over + other


if __name__ == "__main__":
    serve()
