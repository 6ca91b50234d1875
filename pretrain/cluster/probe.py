"""What one machine says of itself, and whether two machines can talk: the doctor's instrument.

`python -m pretrain.cluster.probe`, run on a machine over ssh, reads one order as a line of JSON and
answers with one. The Python environment and this checkout are at the same path everywhere.
"""

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from pathlib import Path

from pretrain.cluster.nodes import Host, on_host
from shards.files import InputError
from shards.schema import OBJECTS, TEACHER

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "deepspeed", "transformers", "timm", "numpy", "safetensors", "tokenizers")
_SECONDS = 120


def ask(host: Host, order: dict) -> dict:
    """What a machine answers to one order; {"error": …} where it does not."""
    try:
        result = subprocess.run(
            _command(host), input=json.dumps(order) + "\n", capture_output=True, text=True,
            timeout=_SECONDS, check=False,
        )  # fmt: skip
        return json.loads(result.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return {"error": f"no answer in {_SECONDS} s"}
    except (ValueError, IndexError):
        return {"error": (result.stderr.strip().splitlines() or ["no answer"])[-1]}


def talk(source: Host, target: Host, port: int) -> str | None:
    """Why `source` cannot open a connection to `target` (port 0: any free one), or None."""
    listener = subprocess.Popen(
        _command(target), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert listener.stdin and listener.stdout  # pipes
    try:
        listener.stdin.write(json.dumps({"do": "listen", "port": port}) + "\n")
        listener.stdin.flush()
        opened = json.loads(listener.stdout.readline() or '{"error": "no answer"}')
        if "error" in opened:
            return f"{opened['error']}: another program has it? choose another --master_port"
        answer = ask(source, {"do": "connect", "host": target.address, "port": opened["port"]})
        if "error" in answer:
            return (
                f"port {opened['port']}: {answer['error']}; open all TCP ports between the "
                "machines, and let every name resolve on every one"
            )
        return None
    finally:
        listener.kill()
        listener.communicate()


def _command(host: Host) -> list[str]:
    command = [sys.executable, "-m", "pretrain.cluster.probe"]
    return on_host(host, ["env", f"PYTHONPATH={ROOT}", *command])


def probe(order: dict) -> None:
    """On a machine: one order, one line of JSON."""
    os.environ.update(order.get("env", {}))
    if order["do"] == "facts":
        answer = facts(order)
    elif order["do"] == "listen":
        answer = _listen(order["port"])
    else:
        try:
            socket.create_connection((order["host"], order["port"]), timeout=10).close()
            answer = {}
        except OSError as error:
            answer = {"error": str(error)}
    print(json.dumps(answer), flush=True)


def facts(order: dict) -> dict:
    """Versions, code, devices, memory, interfaces; data and run directory where they are named."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    facts = {
        "versions": versions,
        "code": code_hash(ROOT),
        "gpus": gpus,
        "shm": shutil.disk_usage("/dev/shm").free,
        "interfaces": [name for _, name in socket.if_nameindex()],
    }
    if "run_dir" in order:
        folder = Path(order["run_dir"])
        seen = folder / f".doctor-{order['token']}"
        # Written by the machine that asks: who reads it sees the same disk, not one of that name.
        facts["token"] = (
            seen.is_file() and seen.read_text() == order["token"] and os.access(folder, os.W_OK)
        )
        facts["free"] = shutil.disk_usage(folder).free if folder.is_dir() else 0
        facts["data"] = {path: _data(path) for path in order["data"]}
    return facts


def code_hash(root: Path) -> str:
    """First half of the sha256 over names and bytes of all that a run executes."""
    digest = hashlib.sha256()
    paths = (path for package in ("shards", "pretrain") for path in (root / package).rglob("*"))
    for path in sorted(path for path in paths if path.suffix in (".py", ".yaml", ".tsv")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root)} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


def _data(path: str) -> dict:
    from shards.location import names_tars
    from shards.tars import open_shards

    try:
        reader = open_shards(path)
        columns = [column for column in (OBJECTS, TEACHER) if reader.has_column(column)]
        shards = [(shard.name, shard.sha256) for shard in reader.index.shards]
        hashed = hashlib.sha256(repr(shards).encode()).hexdigest()[:32]
        elsewhere = "://" in path or names_tars(path)
        missing = [] if elsewhere else [n for n, _ in shards if not (Path(path) / n).is_file()]
    except (InputError, OSError) as error:
        return {"error": str(error)}
    if missing:
        return {"error": f"{path}: {len(missing)} shards missing, {missing[0]} first"}
    return {"samples": reader.index.samples, "columns": columns, "shards": hashed}


def _listen(port: int) -> dict:
    """Tell the port, then wait to be ended (the caller kills ssh, which closes our input)."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("", port))
        except OSError as error:
            return {"error": f"port {port}: {error.strerror}"}
        server.listen()
        print(json.dumps({"port": server.getsockname()[1]}), flush=True)
        sys.stdin.read()
    return {}


if __name__ == "__main__":
    probe(json.loads(sys.stdin.readline()))
