"""`fake_hub`: a Hugging Face hub in this process, as far as push and download need one.
`pair_shards`: a small shard directory with objects.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from PIL import Image

from shards.__main__ import main as shards_command
from shards.corpora import captions
from shards.write import build


class Hub:
    """Repositories in memory, and a log of what was asked."""

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.requests: list[str] = []

    def revision(self, repo: str) -> str:
        joined = b"".join(k.encode() + v for k, v in sorted(self.repos[repo].items()))
        return hashlib.sha1(joined).hexdigest()


def handler_for(hub: Hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args) -> None:
            pass

        def send(self, content, status: int = 200, headers: dict | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            kind = "application/octet-stream" if isinstance(content, bytes) else "application/json"
            fields = {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}
            for name, value in fields.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def url(self, path: str) -> str:
            return f"http://{self.headers['Host']}/{path}"

        def handle_request(self) -> None:
            path = unquote(urlparse(self.path).path)
            hub.requests.append(f"{self.command} {path}")
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.answer(path, body)

        do_GET = do_POST = do_HEAD = do_PUT = handle_request

        def answer(self, path: str, body: bytes) -> None:
            if path == "/api/repos/create":
                request = json.loads(body)
                owner = request.get("organization") or "me"
                repo = f"{owner}/{request['name']}"
                hub.repos.setdefault(repo, {})
                return self.send({"url": self.url(repo), "name": repo})
            if path == "/api/validate-yaml":
                return self.send({"errors": [], "warnings": []})
            if path.startswith("/api/models/"):
                parts = path.removeprefix("/api/models/").split("/")
                return self.model_api("/".join(parts[:2]), parts[2:], body)
            parts = path.strip("/").split("/")
            if "resolve" in parts and "/".join(parts[:2]) in hub.repos:
                return self.file("/".join(parts[:2]), "/".join(parts[4:]))
            return self.send(
                {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}
            )

        def model_api(self, repo: str, rest: list[str], body: bytes) -> None:
            if repo not in hub.repos:
                return self.send({"error": "not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            files = hub.repos[repo]
            if rest[:1] == ["preupload"]:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]
                return self.send({"files": modes})
            if rest[:1] == ["commit"]:
                for line in body.decode().splitlines():
                    item = json.loads(line)
                    if item["key"] == "file":
                        value = item["value"]
                        files[value["path"]] = base64.b64decode(value["content"])
                commit = hub.revision(repo)
                page = self.url(f"{repo}/commit/{commit}")
                return self.send({"commitOid": commit, "commitUrl": page, "success": True})
            if rest[:1] == ["tree"]:
                tree = [{"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                        for name, content in files.items()]  # fmt: skip
                return self.send(tree)
            siblings = [{"rfilename": name} for name in files]
            return self.send({"id": repo, "sha": hub.revision(repo), "siblings": siblings,
                              "private": False, "tags": [], "downloads": 0})  # fmt: skip

        def file(self, repo: str, name: str) -> None:
            content = hub.repos[repo].get(name)
            if content is None:
                return self.send({"error": "x"}, 404, {"X-Error-Code": "EntryNotFound"})
            digest = hashlib.sha256(content).hexdigest()
            self.send(content, 200, {"ETag": f'"{digest}"', "X-Repo-Commit": hub.revision(repo)})

    return Handler


@pytest.fixture
def fake_hub():
    """(hub, its URL)."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_for(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield hub, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PICTURES = 16


@pytest.fixture(scope="session")
def pair_shards(tmp_path_factory) -> Path:
    """32 pairs of 64 x 48 pictures in 16 tars; every fourth picture has no object."""
    root = tmp_path_factory.mktemp("pairs")
    random, lines, boxes = np.random.default_rng(0), ["image,caption"], []
    for number in range(PICTURES):
        name = f"{number}.jpg"
        coarse = random.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((64, 48)).save(root / name, quality=90)
        lines += [f"{name},a dog {number}", f"{name},the cat number {number} sees {number} birds"]
        item = {"box": [number, 5, 40 + number, 40], "score": 0.9, "label": "dog"}
        boxes.append({"image_id": name, "objects": [item] if number % 4 else []})
    (root / "captions.csv").write_text("\n".join(lines))
    (root / "boxes.jsonl").write_text("\n".join(map(json.dumps, boxes)))
    build(captions(root, root / "captions.csv"), root / "shards", shard_size=1)
    detector = ["--detector", "file", "--boxes", str(root / "boxes.jsonl")]
    shards_command(["detect", str(root / "shards"), *detector])
    return root / "shards"
