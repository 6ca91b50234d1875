"""The served page: which files, names and ports; what is left of a closed one; a crowd of users."""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from finetune.predict.extractor import Extractor
from finetune.predict.page import HeldFiles, page
from finetune.predict.pane import read_examples
from finetune.predict.serve import ServeConfig, application, host_names, listener, server
from shards.files import InputError

POST = ["Ann and Bob tonight", None, "Ann", "Bob", False, ""]


class Client:
    """A served page in this process, and what a browser asks of it."""

    def __init__(self, blocks, url, folder):
        httpx = pytest.importorskip("httpx")
        self.blocks, self.url, self.folder = blocks, url, folder
        self.http = httpx.Client(base_url=f"{url}gradio_api/", timeout=60)
        config = httpx.get(f"{url}config").json()
        self.functions = {d["api_name"]: d["id"] for d in config["dependencies"]}

    def upload(self, path):
        """The file as components take it."""
        with open(path, "rb") as file:
            (place,) = self.http.post("upload", files={"files": file}).json()
        return {"path": place, "meta": {"_type": "gradio.FileData"}}

    def call(self, name, data, session):
        """What a function answers to a page."""
        asked = {"data": data, "fn_index": self.functions[name], "session_hash": session}
        assert self.http.post("queue/join", json=asked).status_code == 200
        stream = self.http.get(f"queue/data?session_hash={session}").text
        messages = [json.loads(line[6:]) for line in stream.splitlines() if line[:6] == "data: "]
        (completed,) = [m for m in messages if m["msg"] == "process_completed"]
        assert completed["success"], completed
        return completed["output"]["data"]

    def files(self):
        """Uploads and pictures made for pages."""
        return [path for path in self.folder.rglob("*") if path.is_file()]


@pytest.fixture
def served(tmp_path, untrained, mnre_folder, monkeypatch):
    """The page of an untrained run, with examples."""
    pytest.importorskip("gradio")
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    examples = read_examples(str(mnre_folder))
    blocks = page({"run": Extractor.from_pretrained(untrained)}, examples, 2_000)
    app = application(blocks, [row[1] for row in examples], ["localhost", "127.0.0.1"], folder)
    with listener("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        running = server(app, "127.0.0.1", port)
        thread = threading.Thread(target=running.run, args=([sock],))
        thread.start()
        until(lambda: running.started)
        yield Client(blocks, f"http://127.0.0.1:{port}/", folder)
        running.should_exit = True
        thread.join(30)
    assert not folder.exists()


def until(true, seconds=20):
    """Wait for it."""
    for _ in range(seconds * 50):
        if true():
            return
        time.sleep(0.02)
    raise AssertionError("never")


def test_only_the_pictures_of_the_examples_are_given_out(served, mnre_folder, untrained, capfd):
    def status(path):
        return served.http.get(f"file={path}").status_code

    shown = [Path(row[1]) for row in read_examples(str(mnre_folder))]
    assert [status(path) for path in shown] == [200] * len(shown)
    others = [path for path in mnre_folder.rglob("*") if path.is_file() and path not in shown]
    others += [untrained / "seed-1/model/method.json", Path(__file__), Path("pyproject.toml")]
    others += [shown[0].parent / "../../txt/ours_val.txt", Path("/etc/hostname")]
    assert len(others) > 100 and {status(path) for path in others} <= {403, 404}
    assert capfd.readouterr().err == ""


def test_another_name_is_refused(served):
    for host, status in [("localhost", 200), ("127.0.0.1:7860", 200), ("evil.example", 400),
                         ("127.0.0.1.evil.example", 400), ("", 400)]:  # fmt: skip
        for path in ("config", "gradio_api/info", "gradio_api/file=x"):
            answered = served.http.get(served.url + path, headers={"Host": host}).status_code
            assert (answered == 400) == (status == 400), (host, path)


def test_names_that_a_page_answers_to():
    assert host_names("127.0.0.1", ()) == ["localhost", "127.0.0.1", "[::1]"]
    assert host_names("10.1.2.3", ("lab",)) == [
        "localhost",
        "127.0.0.1",
        "[::1]",
        "lab",
        "10.1.2.3",
    ]
    assert "[fe80::1]" in host_names("fe80::1", ())
    assert socket.gethostname() in host_names("0.0.0.0", ())
    assert "*" not in host_names("0.0.0.0", ()) and "0.0.0.0" not in host_names("0.0.0.0", ())


def test_a_taken_port_is_one_line():
    with listener("127.0.0.1", 0) as sock:
        port = sock.getsockname()[1]
        with pytest.raises(
            InputError, match=f"^--host 127.0.0.1 --port {port}: Address already in"
        ):
            listener("127.0.0.1", port)
    with pytest.raises(InputError, match=r"--host no\.such\.host"):
        listener("no.such.host.invalid", port)
    with pytest.raises(ValueError, match="port must be"):
        ServeConfig(run="r", port=70_000)
    with pytest.raises(ValueError, match="max_megapixels"):
        ServeConfig(run="r", max_megapixels=0)


def test_selections_that_are_none_are_answered(served, capfd):
    for selected in ("x:y", "", "1", "5:1", "0:99"):
        assert served.call("keep", [selected, "Ann and Bob", "was"], "s") == ["was"]
    assert served.call("keep", ["8:11", "Ann and Bob", "was"], "s") == ["Bob"]
    assert capfd.readouterr().err == ""


def test_pictures_are_judged_before_gradio_decodes_them(served, tmp_path, capfd):
    """Palettes and EXIF flags make gradio's own component decode; a cut body would show it."""
    picture = Image.new("P", (50, 60))  # over the 2,000 pixels of this page
    picture.save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    (tmp_path / "none.png").write_bytes(b"hello")
    for name, reason in [("whole.png", "50x60"), ("cut.png", "50x60"), ("none.png", "not a JPEG")]:
        post = [POST[0], served.upload(tmp_path / name), *POST[2:]]
        note = served.call("read", post, "s")[1]
        assert note.startswith(f"**Not read:** image {name}: ") and reason in note
    assert capfd.readouterr().err == ""


def test_nothing_is_left_of_a_closed_page(served, tmp_path):
    """Two pages show the same picture; the second also asks where the run looked."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "mine.png")
    before = set(served.files())
    hold = next(d for d in served.blocks.config["dependencies"] if d["targets"][0][1] == "upload")
    beats = {}
    for session, look in (("first", False), ("second", True)):
        beats[session] = beat(served, session)
        upload = served.upload(tmp_path / "mine.png")
        held = {"data": [upload], "fn_index": hold["id"], "session_hash": session}
        assert served.http.post("run/predict", json=held).status_code == 200
        assert served.call("read", [POST[0], upload, *POST[2:4], look, ""], session)
    mine = Path(upload["path"])
    sessions = served.blocks.state_holder.session_data
    assert mine in served.files() and {"first", "second"} <= set(sessions)

    beats["first"].close()
    until(lambda: "first" not in sessions)
    assert mine in served.files() and "second" in sessions

    beats["second"].close()
    until(lambda: "second" not in sessions)
    until(lambda: set(served.files()) == before)
    time.sleep(0.2)  # whatever runs behind it
    assert not sessions and not mine.parent.exists()


def beat(served, session):
    """The connection by which a page says that it is open."""
    connection = http.client.HTTPConnection(served.url[7:-1])
    connection.request("GET", f"/gradio_api/heartbeat/{session}")
    assert connection.getresponse().readline() == b"data: ALIVE\n"
    return connection


def test_forgotten_pages_are_closed(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune.predict.page.SESSIONS", 2)
    files, paths = HeldFiles(), [tmp_path / f"{i}/p.png" for i in range(3)]
    for number, path in enumerate(paths):
        path.parent.mkdir()
        path.touch()
        files.hold(str(number), str(path))
        files.hold("0", str(paths[0]))
    assert [path.exists() for path in paths] == [True, False, True]


def test_the_command_says_where_it_is_and_leaves_nothing(untrained, mnre_folder, tmp_path):
    pytest.importorskip("gradio")
    command = [sys.executable, "-m", "finetune", "serve", str(untrained), "--port", "0"]
    (tmp_path / "temporary").mkdir()
    process = subprocess.Popen(
        [*command, "--examples", str(mnre_folder)], text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=os.environ | {"TMPDIR": str(tmp_path / "temporary")},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        url = re.fullmatch(r"(http://127\.0\.0\.1:\d+/) is ready; Ctrl-C ends it\n", line)[1]
        assert urllib.request.urlopen(url).status == 200
        assert list((tmp_path / "temporary").glob("fusion-mre-page-*"))
        port = url.rsplit(":")[-1].strip("/")
        taken = subprocess.run([*command[:-1], port], text=True, capture_output=True)
        assert taken.returncode == 2
        assert taken.stderr.splitlines()[-1].startswith(f"error: --host 127.0.0.1 --port {port}: ")
        assert "Traceback" not in taken.stderr
    finally:
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert len(errors.splitlines()) == 1 and "not calibrated" in errors
    assert not list((tmp_path / "temporary").glob("fusion-mre-page-*"))


@pytest.mark.slow
@pytest.mark.parametrize("picture", [False, True])
def test_a_crowd_gets_all_its_answers(served, tmp_path, picture):
    """200 users at once, four posts each, on connections that they keep between requests."""
    httpx = pytest.importorskip("httpx")
    Image.new("RGB", (40, 30), "red").save(tmp_path / "mine.png")
    image = served.upload(tmp_path / "mine.png") if picture else None
    asked = {"data": [POST[0], image, *POST[2:]], "fn_index": served.functions["read"]}

    async def user(client, number):
        for turn in range(4):
            session = f"user-{number}-{turn}"
            await client.post("queue/join", json=asked | {"session_hash": session})
            stream = (await client.get(f"queue/data?session_hash={session}")).text
            assert stream.count('"process_completed"') == 1 and '"success":true' in stream, stream

    async def crowd():
        limits = httpx.Limits(max_connections=None)
        base = f"{served.url}gradio_api/"
        async with httpx.AsyncClient(base_url=base, timeout=600, limits=limits) as client:
            users = (user(client, number) for number in range(200))
            return await asyncio.gather(*users, return_exceptions=True)

    lost = [repr(error) for error in asyncio.run(crowd()) if error is not None]
    assert not lost, lost[:3]


@pytest.mark.slow
def test_a_connection_is_not_closed_under_a_request(served):
    """uvicorn closes an idle one after 5 seconds: a request on its way is then lost."""
    connection = http.client.HTTPConnection(served.url[7:-1])
    for wait in (0, 6.5):
        time.sleep(wait)
        connection.request("GET", "/config")
        assert len(connection.getresponse().read()) > 1000


@pytest.mark.slow
def test_in_a_browser(tmp_path, mnre_folder, untrained, picture):
    """Upload, select, read. Needs the extra `serve`, playwright, and Debian's chromium."""
    pytest.importorskip("gradio")
    playwright = pytest.importorskip("playwright.sync_api")
    if not Path("/usr/bin/chromium").exists():
        pytest.skip("no /usr/bin/chromium")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    command = [sys.executable, "-m", "finetune", "serve", str(untrained), "--port", str(port)]
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
