"""What the page shows is what `predict` says; hostile posts and pictures get a line."""

import io
import struct
import zipfile
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageFile

from finetune.predict.pane import (
    LONGEST,
    answer,
    mention,
    pieces,
    read_examples,
    selected_words,
)
from shards.files import InputError


def test_the_page_shows_what_predict_says(extract, picture):
    pane = answer(extract, "Ann and Bob tonight", "Ann", "[8, 11]", picture, False)
    predicted = extract("Ann and Bob tonight", head="Ann", tail=[8, 11], image=picture, top_k=5)
    assert pane.bars == {entry["relation"]: entry["probability"] for entry in predicted["top"]}
    assert pane.spans == [("Ann", "head"), (" and ", None), ("Bob", "tail"), (" tonight", None)]
    assert pane.picture is None
    looked = answer(extract, "Ann and Bob tonight", "Ann", "Bob", picture, True)
    assert "part of the picture" in looked.note


def test_pieces_are_the_text():
    text = "a bc d"
    spans = [(2, 4, "x"), (3, 4, "inside"), (5, 6, "y")]
    assert pieces(text, spans) == [("a ", None), ("bc", "x"), (" ", None), ("d", "y")]
    assert mention("Bob and Bob ", 8, 12) == "[8, 11]" and mention("Bob in Oslo", 6, 11) == "Oslo"


@pytest.mark.parametrize(
    ("selected", "words"),
    [("0:3", "Ann"), ("0:4", "Ann"), ("4:7", "[4, 7]"), ("8:11", "[8, 11]"), ("3:4", None),
     ("x:y", None), ("", None), (None, None), ("3", None), ("-3:2", None), ("7:4", None),
     ("0:99", None), ("0:" + "9" * 5000, None), ("¹:²", None)],
)  # fmt: skip
def test_a_selection_is_words_of_the_post_or_nothing(selected, words):
    assert selected_words(selected, "Ann Bob Bob") == words


def test_examples_are_related_rows_with_pictures(mnre_folder):
    examples = read_examples(str(mnre_folder))
    assert 0 < len(examples) <= 6
    for text, image, head, tail in examples:
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
    "Ann \ud83d Bob": r"text holds half a character \(the surrogate U\+D83D alone, after 4 ch",
    "Ann\x00Bob": "a NUL character",
    "Ann \u202eBob": None, "Ann " + "\U0001f600" * 1500 + " Bob": None,
    "Ann [E1] Bob": None,
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_hostile_pictures_get_a_line(extract, picture, tmp_path, name):
    (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(InputError) as refused:
        answer(extract, "Ann and Bob", "Ann", "Bob", str(tmp_path / name), False)
    assert "\n" not in str(refused.value) and "image" in str(refused.value)
    assert answer(extract, "Ann and Bob", "Ann", "Bob", picture, False).bars


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp"])
def test_too_many_pixels_are_refused_before_one_is_decoded(extract, tmp_path, monkeypatch, suffix):
    path = tmp_path / f"large.{suffix}"
    Image.new("RGB", (40, 30), "red").save(path)
    assert answer(extract, "Ann and Bob", "Ann", "Bob", str(path), False, "", 1200).bars

    def decode(*_):
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decode)
    with pytest.raises(InputError, match=rf"image large\.{suffix}: .*40x30.* 1,199 pixels"):
        answer(extract, "Ann and Bob", "Ann", "Bob", str(path), False, "", 1199)


@pytest.mark.parametrize(("text", "message"), POSTS.items(), ids=range(len(POSTS)))
def test_hostile_posts_get_a_line(extract, picture, text, message):
    if message is None:
        assert answer(extract, text, "Ann", "Bob", picture, False).bars
        return
    with pytest.raises(InputError, match=message):
        answer(extract, text, "Ann", "Bob", picture, False)
    with pytest.raises(InputError):
        answer(extract, "Ann and Bob", "Ann", "[900, 901]", picture, False)
