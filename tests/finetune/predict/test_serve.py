"""The web page: what it shows is what `predict` says; hostile input gets a line; a real browser."""

import io
import json
import os
import re
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image

from finetune.methods.base import Source
from finetune.methods.promu import Promu, PromuConfig
from finetune.predict.extractor import Extractor
from finetune.predict.serve import LONGEST, answer, mention, pieces, read_examples
from finetune.tasks.mnre import Mnre
from shards.files import InputError


def save_run(directory: Path, task, model) -> Path:
    """One seed of an untrained PROMU."""
    from finetune.run.checkpoint import save_method

    method, tokenizer = Promu.build(PromuConfig(), task.info, Source(str(model)))
    save_method(
        directory / "seed-1/model", method, tokenizer, name="promu", config=PromuConfig(),
        task=task.info, inputs={"images": "required", "max_length": 40}, card="# card\n",
    )  # fmt: skip
    (directory / "seed-1/result.json").write_text(json.dumps({"dev": {"f1": 1.0}}))
    return directory


@pytest.fixture
def extract(tmp_path, mnre_folder, tiny_model):
    return Extractor.from_pretrained(save_run(tmp_path / "run", Mnre(mnre_folder), tiny_model))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "good.png"
    Image.new("RGB", (40, 30), (200, 10, 10)).save(path)
    return str(path)


def test_the_page_shows_what_predict_says(extract, picture):
    shown = answer(extract, "Ann and Bob tonight", "Ann", "8:11", picture, False)
    said = extract("Ann and Bob tonight", head="Ann", tail=[8, 11], image=picture, top_k=5)
    assert shown["bars"] == {entry["relation"]: entry["probability"] for entry in said["top"]}
    assert shown["spans"] == [("Ann", "head"), (" and ", None), ("Bob", "tail"), (" tonight", None)]
    assert shown["picture"] is None
    looked = answer(extract, "Ann and Bob tonight", "Ann", "Bob", picture, True)
    assert "part of the picture" in looked["note"]


def test_pieces_are_the_text():
    text = "a bc d"
    spans = [(2, 4, "x"), (3, 4, "inside"), (5, 6, "y")]
    assert pieces(text, spans) == [("a ", None), ("bc", "x"), (" ", None), ("d", "y")]
    assert mention("Bob and Bob ", 8, 12) == "8:11" and mention("Bob in Oslo", 6, 11) == "Oslo"


def test_examples_are_related_rows_with_pictures(mnre_folder):
    found = read_examples(str(mnre_folder))
    assert 0 < len(found) <= 6
    for text, image, head, tail in found:
        assert head in text and tail in text and Path(image).is_file()


def png(width: int, height: int) -> bytes:
    """A PNG that claims this size, and holds nothing of it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb", b"\0" * 10_000_000)
    return buffer.getvalue()


JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF\x00"
FILES = {
    "empty.jpg": b"", "text.png": b"hello", "cut.jpg": JPEG, "script.svg": b"<svg><script/></svg>",
    "page.jpg": b"<html><img src=x onerror=alert(1)></html>", "zip.png": zipped(),
    "bomb.png": png(60_000, 60_000), "flat.png": png(0, 10), "wide.png": png(2_000_000, 1_000),
    "no_data.png": png(50, 50)[:40], "pickle.jpg": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}  # fmt: skip
POSTS = {
    "": "text must be", "   ": "text must be", "x" * (LONGEST + 1): "reads 2000",
    "Ann alone": "does not occur", "Ann Bob Bob": "occurs 2 times",
    "Ann\x00Bob": None, "Ann \u202eBob": None, "Ann " + "\U0001f600" * 1500 + " Bob": None,
    "Ann [E1] Bob": None,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_hostile_pictures_get_a_line(extract, picture, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(InputError) as refused:
        answer(extract, "Ann and Bob", "Ann", "Bob", str(tmp_path / name), False)
    assert "\n" not in str(refused.value) and "image" in str(refused.value)
    assert answer(extract, "Ann and Bob", "Ann", "Bob", picture, False)["bars"]


@pytest.mark.parametrize(("text", "message"), POSTS.items(), ids=range(len(POSTS)))
def test_hostile_posts_get_a_line(extract, picture, text, message):
    if message is None:
        assert answer(extract, text, "Ann", "Bob", picture, False)["bars"]
        return
    with pytest.raises(InputError, match=message):
        answer(extract, text, "Ann", "Bob", picture, False)
    with pytest.raises(InputError):
        answer(extract, "Ann and Bob", "Ann", "900:901", picture, False)


@pytest.mark.slow
def test_in_a_browser(tmp_path, mnre_folder, tiny_model, picture):
    """Upload, select, read. Needs the extra `serve`, playwright, and Debian's chromium."""
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium")
    run = save_run(tmp_path / "run", Mnre(mnre_folder), tiny_model)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "finetune", "serve", str(run), "--port", str(port)]
    server = subprocess.Popen([*command, "--examples", str(mnre_folder)])
    try:
        for _ in range(120):
            time.sleep(1)
            try:
                urllib.request.urlopen(url)
                break
            except OSError:
                assert server.poll() is None
        flags = "--no-sandbox --disable-gpu --disable-quic --disable-background-networking"
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(
                executable_path="/usr/bin/chromium", args=flags.split()
            )
            page = browser.new_page()
            outside = []
            page.on("request", lambda request: outside.append(request.url))
            page.goto(url, wait_until="domcontentloaded")
            post = page.locator("#post textarea")
            post.fill("Ann and Bob tonight")
            for start, end, name in [(0, 3, "head"), (8, 11, "tail")]:
                post.evaluate(
                    "(t, [a, b]) => { t.focus(); t.setSelectionRange(a, b) }", [start, end]
                )
                page.get_by_text(f"Selected words → {name}").click()
                page.wait_for_function(
                    f"document.querySelector('#{name} textarea, #{name} input').value"
                )
            page.set_input_files("#picture input[type=file]", picture)
            page.locator("#picture img").wait_for()
            page.locator("#read").click()
            page.get_by_text(re.compile(r"^\d+%$")).first.wait_for()
            page.set_input_files("#picture input[type=file]", str(huge(tmp_path)))
            page.wait_for_timeout(2000)
            assert server.poll() is None
            assert urllib.request.urlopen(url).status == 200
            if folder := os.environ.get("FUSION_MRE_SHOTS"):
                page.screenshot(path=f"{folder}/page.png", full_page=True)
            browser.close()
        foreign = {u for u in outside if not u.startswith((url, "data:", "blob:"))}
        assert not [u for u in foreign if "huggingface" in u or "analytics" in u], foreign
    finally:
        server.terminate()
        server.wait(20)


def huge(folder: Path) -> Path:
    """Larger than an upload may be."""
    path = folder / "huge.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 20_000_000)
    return path
