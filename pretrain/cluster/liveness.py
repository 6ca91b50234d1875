"""A process that dies takes the job down at once and by name, not by a collective's timeout.

Every process holds one connection to the main one. The kernel closes it when the process ends,
however it ends; a host that is cut off is noticed by keep-alive, in about 20 seconds.
"""

import json
import multiprocessing
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from types import TracebackType

from pretrain import distributed
from shards.files import CommonError, InputError

_FAREWELL = "done"
_SILENT = "ended without a word: killed, out of memory, or its host is lost"


class Liveness:
    """A context, entered and left by every process of a job; does nothing in a job of one.

    A process that leaves with an exception tells its reason; every other one then prints nothing
    (the main process prints one line) and exits with status 1.
    """

    def __enter__(self) -> "Liveness":
        self._peers: dict[socket.socket, str] = {}
        if distributed.world_size() == 1:
            return self
        server = _listen() if distributed.is_main() else None
        mine = (_name(), server.getsockname()[1] if server else 0, secrets.token_hex(16))
        self._main_name, port, token = distributed.broadcast_object(mine)
        if not server:
            address = os.environ.get("MASTER_ADDR", "127.0.0.1"), port
            connection = _kept_alive(socket.create_connection(address, timeout=60))
            connection.settimeout(None)
            connection.sendall(_line({"token": token, "name": _name()}))
            self._peers[connection] = self._main_name
        arguments = (server, token, distributed.world_size() - 1 if server else 0)
        threading.Thread(target=self._watch, args=arguments, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if distributed.world_size() == 1:
            return
        common = error is None or isinstance(error, CommonError)
        if not common and not isinstance(error, InputError):
            # A collective that broke: its cause, another process's end, is on its way to us.
            time.sleep(2)
        words = _FAREWELL if common else f"{_name()}: {_reason(error)}"
        self._tell(words)

    def _tell(self, words: str) -> None:
        for peer in list(self._peers):
            try:
                peer.sendall(_line({"words": words}))
            except OSError:  # gone already
                continue

    def _watch(self, server: socket.socket | None, token: str, expected: int) -> None:
        """The thread: every peer says farewell, or the job ends here."""
        selector = selectors.DefaultSelector()
        readers: dict[socket.socket, bytes] = {}
        if server:
            selector.register(server, selectors.EVENT_READ)
        for known in self._peers:
            selector.register(known, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select():
                peer = key.fileobj
                assert isinstance(peer, socket.socket)  # nothing else is registered
                if peer is server:
                    accepted = _kept_alive(server.accept()[0])
                    selector.register(accepted, selectors.EVENT_READ)
                    continue
                line = self._read(peer, readers)
                if line is None:
                    continue
                if line.get("token") == token:
                    self._peers[peer] = line["name"]
                    expected -= 1
                    if server and not expected:
                        selector.unregister(server)
                        server.close()
                    continue
                selector.unregister(peer)
                name = self._peers.get(peer)
                if name is None:  # a stranger: no process of this job
                    peer.close()
                elif line.get("words") != _FAREWELL:
                    self._take_down(line.get("words") or f"{name} {_SILENT}", peer)

    def _read(self, peer: socket.socket, readers: dict) -> dict | None:
        """One line of a peer; {} at its end; None where the line is not whole yet."""
        try:
            readers[peer] = readers.get(peer, b"") + (received := peer.recv(65536))
        except OSError:  # reset, or keep-alive gave up
            return {}
        head, newline, rest = readers[peer].partition(b"\n")
        if not newline:
            return None if received and len(head) < 65536 else {}
        readers[peer] = rest
        try:
            line = json.loads(head)
        except ValueError:
            return {}
        return line if isinstance(line, dict) else {}

    def _take_down(self, words: str, culprit: socket.socket) -> None:
        # Where the main process itself is gone, the first of the others speaks.
        if distributed.is_main() or (distributed.rank() == 1 and words.startswith("rank 0 ")):
            sys.stderr.write(
                f"error: {words}\nerror: the run ends; the same command goes on from its last "
                "complete checkpoint\n"
            )
            sys.stderr.flush()
        self._peers.pop(culprit)
        self._tell(words)
        for worker in multiprocessing.active_children():  # they notice by themselves, but late
            worker.kill()
        os._exit(1)  # the main thread may wait in a collective that never ends


def _name() -> str:
    return f"rank {distributed.rank()} ({socket.gethostname()}, pid {os.getpid()})"


def _reason(error: BaseException | None) -> str:
    text = str(error).strip().split("\n")[0]
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"


def _listen() -> socket.socket:
    server = socket.socket()
    server.bind(("", 0))
    server.listen(1024)
    return server


def _kept_alive(connection: socket.socket) -> socket.socket:
    """Notice a peer that vanished without closing, after about 20 seconds."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
    for name, value in options.items():
        if hasattr(socket, name):  # Linux has all of them
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return connection


def _line(content: dict) -> bytes:
    return json.dumps(content).encode() + b"\n"
