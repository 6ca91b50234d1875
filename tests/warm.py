"""A Python whose imports are made: a server that has made them once forks a child for each start.

`Interpreter(folder).path` is a folder with `python` and `deepspeed` for the front of PATH. A child
is `python` of its caller with `-m MODULE`, `-c CODE` or a file: words, environment, working folder,
files 0 to 2, exit status, and the signals that end a run. It is the server's child, though, and is
killed when its caller dies: who watches its launcher or imports what is not tested with it.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from faults import WARM

MODULES = (
    *(name for name in WARM if not name.endswith("__main__")),
    *("deepspeed.launcher.runner", "deepspeed.launcher.launch", "timm", "torchvision.ops"),
    *("pretrain.label", "shards.objects", "torch.distributed.run", "pytest"),
    "deepspeed.runtime.zero.muon.muon_optimizer",  # of every rank: 560 modules
)
ROOT = Path(__file__).resolve().parents[1]
CPU = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
CALLER = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(4, "big")], [0, 1, 2])
    server.sendall(request)
    child = int(server.recv(8))
    forwarded = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    for number in forwarded:
        signal.signal(number, lambda number, _: os.kill(child, number))
    status = int(server.recv(9) or 255)
if status < 0:
    if -status in forwarded:
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""


def become(connection: socket.socket) -> None:
    """Make this process the one that was asked for, and run it."""
    size, files, _, _ = socket.recv_fds(connection, 4, 3)
    with connection.makefile("rb") as stream:
        words, folder, environment = json.loads(stream.read(int.from_bytes(size, "big")))
    connection.close()
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[1:1] = environment.get("PYTHONPATH", "").split(os.pathsep)
    while words[0] == "-u":
        words.pop(0)
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], folder
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv, sys.path[0] = ["-c", *words[2:]], ""
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(os.path.abspath(words[0]))
        runpy.run_path(words[0], run_name="__main__")


def gone(caller: socket.socket) -> bool:
    """Whether its process has ended."""
    try:
        return not caller.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def serve(address: str, python: str) -> None:
    """Until standard input is closed."""
    importlib.import_module("multiprocessing.spawn")  # starts what is `sys.executable` now
    for name in MODULES:
        importlib.import_module(name)
    sys.executable = python  # launchers start this
    callers: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0" + address)
        listener.listen()
        gc.collect()
        gc.freeze()
        print("warm", flush=True)
        while True:
            ready, _, _ = select.select([listener, 0], [], [], 0.02 if callers else None)
            for pid, caller in callers.items():
                if 0 in ready or gone(caller):
                    os.kill(pid, signal.SIGKILL)
            if 0 in ready:
                os._exit(0)
            if ready:
                connection, _ = listener.accept()
                if not (pid := os.fork()):
                    break
                callers[pid] = connection
                with suppress(OSError):
                    connection.sendall(b"%8d" % pid)
            while callers and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                with (
                    callers.pop(ended[0]) as connection,
                    suppress(OSError),
                ):  # the caller may be dead
                    connection.sendall(b"%d" % os.waitstatus_to_exitcode(ended[1]))
    for other in callers.values():
        other.close()
    status = 0
    try:
        become(connection)
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # taking all modules down costs a second


class Interpreter:
    """The server, and the folder whose `python` asks it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bin"
        self.path.mkdir()
        # A name, not a file, whose path may be longer than a socket's may.
        address, bare = f"warm-{os.getpid()}-{id(self)}", Path(sys.executable)
        scripts = {
            "python": CALLER.format(python=bare, address="\0" + address),
            "deepspeed": f'#!/bin/sh\nexec {self.path}/python {bare.parent}/deepspeed "$@"\n',
        }
        for name, text in scripts.items():
            (self.path / name).write_text(text)
            (self.path / name).chmod(0o755)
        environment = os.environ | CPU | {"PYTHONPATH": str(ROOT)}
        self.server = subprocess.Popen(
            [sys.executable, __file__, address, str(self.path / "python")],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert self.server.stdout.readline() == b"warm\n"

    def close(self) -> None:
        """End it."""
        self.server.stdin.close()
        self.server.wait()


if __name__ == "__main__":
    serve(*sys.argv[1:])
