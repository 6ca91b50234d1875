"""Posts and pictures as people have them, valid but crooked, each with its plain twin; and some
that are none. Seeded. What a picture shows is worked out here, by numpy, not by the product.
"""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, features
from tiny_mnre import NAMES, RELATIONS

Random = np.random.Generator

# ---- Pictures --------------------------------------------------------------------------------


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels as a viewer shows them, by the table of the EXIF standard."""
    shown = {
        1: pixels, 2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1],
        5: pixels.swapaxes(0, 1), 6: np.rot90(pixels, -1),
        7: pixels[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(pixels, 1),
    }  # fmt: skip
    return np.ascontiguousarray(shown[orientation])


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


Form = Callable[[Random, np.ndarray], tuple[bytes, np.ndarray]]
"""(random numbers, (H, W, 3) uint8) -> file, and what it shows."""


def exact(kind: str, **options: Any) -> Form:
    return lambda _, rgb: (saved(Image.fromarray(rgb), kind, **options), rgb)


def grey(kind: str) -> Form:
    def form(_: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
        return saved(Image.fromarray(rgb[..., 0]), kind), rgb[..., :1].repeat(3, 2)

    return form


def bits(random: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Black and white, one bit a pixel."""
    black = rgb[..., 0] < 128
    picture = Image.fromarray(np.where(black, 0, 255).astype(np.uint8)).convert("1", dither=0)
    return saved(picture, "PNG"), np.where(black[..., None], 0, 255).repeat(3, 2).astype(np.uint8)


def deep(kind: str) -> Form:
    """16 bits a pixel, of which the upper eight show."""

    def form(random: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
        low = random.integers(0, 256, rgb.shape[:2])
        values = (rgb[..., 0].astype(np.uint16) << 8) | low.astype(np.uint16)
        return saved(Image.fromarray(values), kind), rgb[..., :1].repeat(3, 2)

    return form


def palette(kind: str, transparent: bool = False, frames: int = 1) -> Form:
    """Sixteen colours; one of them may be no colour: white shows behind it."""

    def form(random: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
        indexes, colors = rgb[..., 0] // 16, random.integers(0, 256, (16, 3), dtype=np.uint8)
        picture = Image.fromarray(indexes, "P")
        picture.putpalette(colors.tobytes())
        options: dict[str, Any] = {"transparency": 3} if transparent else {}
        if frames > 1:
            more = [picture.transpose(Image.Transpose.ROTATE_180)] * (frames - 1)
            options |= {"save_all": True, "append_images": more}
        shown = colors[indexes]
        if transparent:
            shown[indexes == 3] = 255
        return saved(picture, kind, **options), shown

    return form


def see_through(mode: str, kind: str, **options: Any) -> Form:
    """Some pixels are not there at all; white shows behind them."""

    def form(random: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
        rgb = rgb if mode == "RGBA" else rgb[..., :1].repeat(3, 2)
        alpha = np.where(random.random(rgb.shape[:2]) < 0.3, 0, 255).astype(np.uint8)
        bands = [rgb, alpha[..., None]] if mode == "RGBA" else [rgb[..., :1], alpha[..., None]]
        shown = np.where(alpha[..., None] == 0, 255, rgb).astype(np.uint8)
        return saved(Image.fromarray(np.concatenate(bands, 2), mode), kind, **options), shown

    return form


def cmyk(_: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
    """Ink without black: what is left of white."""
    inks = np.concatenate([255 - rgb, np.zeros_like(rgb[..., :1])], 2)
    return saved(Image.fromarray(inks, "CMYK"), "TIFF"), rgb


def lying(kind: str) -> Form:
    """Stored as the sensor saw it, with a flag how to turn it."""

    def form(random: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
        flag = int(random.integers(2, 9))
        return saved(Image.fromarray(rgb), kind, exif=exif(flag)), turned(rgb, flag)

    return form


def lossy(kind: str, flagged: bool = False, **options: Any) -> Form:
    """Of formats that lose: what a plain decoder gives, then turned."""

    def form(random: Random, rgb: np.ndarray) -> tuple[bytes, np.ndarray]:
        flag = int(random.integers(2, 9)) if flagged else 1
        tags: dict[str, Any] = {"exif": exif(flag)} if flagged else {}
        if kind == "MPO":  # as phones write two lenses' pictures
            tags |= {"save_all": True, "append_images": [Image.fromarray(255 - rgb)]}
        content = saved(Image.fromarray(rgb), kind, **options, **tags)
        with Image.open(io.BytesIO(content)) as image:
            stored = np.asarray(image.convert("RGB"))
        return content, turned(stored, flag)

    return form


FORMS: dict[str, Form] = {
    "png": exact("PNG"), "bmp": exact("BMP"), "tiff": exact("TIFF", compression="tiff_lzw"),
    "webp": exact("WEBP", lossless=True), "grey png": grey("PNG"), "grey tiff": grey("TIFF"),
    "one bit": bits, "16 bit png": deep("PNG"), "16 bit tiff": deep("TIFF"),
    "palette": palette("PNG"), "gif": palette("GIF"), "many frames": palette("GIF", frames=3),
    "palette, transparent": palette("PNG", transparent=True),
    "gif, transparent": palette("GIF", transparent=True), "cmyk": cmyk,
    "alpha": see_through("RGBA", "PNG"), "grey alpha": see_through("LA", "PNG"),
    "webp alpha": see_through("RGBA", "WEBP", lossless=True), "lying png": lying("PNG"),
    "jpeg": lossy("JPEG"), "progressive": lossy("JPEG", progressive=True),
    "lying jpeg": lossy("JPEG", flagged=True), "mpo": lossy("MPO"),
    "lying webp": lossy("WEBP", flagged=True, lossless=True),
}  # fmt: skip
if features.check("avif"):
    FORMS |= {"avif": lossy("AVIF"), "lying avif": lossy("AVIF", flagged=True)}

NAMES_OF_FILES = (
    "{n}.jpg", "{n}.JPEG", "{n}.png", "{n}", "{n}.tar.gz", "\u00e9{n}.jpg", "e\u0301{n}.jpg",
    "{n} copy (1).png", "日本{n}.webp", "🎉{n}.jpg", "'{n}'.jpg", '"{n}".jpg', "a,b;{n}.jpg",
    "#{n}%20.jpg", "-{n}.jpg", ".{n}.jpg", "{n}\t.jpg", "x" * 200 + "{n}.jpg",
)  # fmt: skip
"""With any ending: what a file holds decides."""


@dataclass(frozen=True)
class Picture:
    """A file and what it shows; None: it is none."""

    name: str
    form: str
    content: bytes
    shown: np.ndarray | None

    def write(self, folder: Path) -> None:
        (folder / self.name).write_bytes(self.content)

    def write_plain(self, folder: Path, name: str) -> None:
        assert self.shown is not None
        Image.fromarray(self.shown).save(folder / name, "PNG")


def draw_picture(random: Random, number: int, damaged: bool = False) -> Picture:
    height, width = (int(side) for side in random.integers(9, 40, 2))
    rgb = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    form = str(random.choice(list(FORMS)))
    content, shown = FORMS[form](random, rgb)
    name = str(random.choice(NAMES_OF_FILES)).format(n=number)
    if not damaged:
        return Picture(name, form, content, shown)
    kinds = {
        "empty": b"", "cut": saved(Image.fromarray(rgb), "PNG")[:70], "text": b"<html>404</html>",
        "eps": saved(Image.fromarray(rgb), "EPS"), "ppm": saved(Image.fromarray(rgb), "PPM"),
        "vast": saved(Image.new("1", (20_000, 20_000)), "PNG") if number % 10 == 0 else b"\xff\xd8",
    }  # fmt: skip
    form = str(random.choice(list(kinds)))
    return Picture(name, form, kinds[form], None)


# ---- Posts -----------------------------------------------------------------------------------

BETWEEN = (
    " and ", " — ", ", ", " 🎉 ", " \U0001f469\u200d\U0001f467 ", " 🇫🇷 ", " e\u0301te\u0301 ",
    " \u202eסוף\u202c ", "\u200b ", " \ufeff", "\u2028", "\x85", "\u00a0", "\t", "\r\n", "\n\n",
    " 東京で ", " https://t.co/aB1?x=1&y=2 ", " @you: ", " #tag ", ' "said" ', " 'so' ", " C:\\x ",
    " &amp; ", " {'a': [1]} ", " 𝒳𝒴 ", " ﷺ ", " ½ ", " ;|, ",
)  # fmt: skip


@dataclass(frozen=True)
class Post:
    """A text with two entities in code points, and its relation."""

    text: str
    head: tuple[int, int]
    tail: tuple[int, int]
    relation: str

    def plain(self) -> dict[str, Any]:
        """As an object of a JSON line, with nothing odd in how it is said."""
        spans = {"head": list(self.head), "tail": list(self.tail), "offsets": "characters"}
        return {"text": self.text, **spans, "relation": self.relation}


def draw_post(random: Random) -> Post:
    def some(most: int) -> str:
        return "".join(random.choice(BETWEEN, int(random.integers(1, most))))

    first, second = random.choice(NAMES, 2, replace=False)
    before, middle, after = some(4), some(4), some(30 if random.random() < 0.05 else 4)
    text = f"RT{before} {first} {middle} {second} {after}".strip()
    spans = [(text.index(str(name)), text.index(str(name)) + len(name)) for name in (first, second)]
    if random.random() < 0.5:
        spans.reverse()
    return Post(text, spans[0], spans[1], str(random.choice(RELATIONS)))


def in_unit(post: Post, span: tuple[int, int], unit: str) -> list[int]:
    """Ends of a span, counted in UTF-16 units or bytes of UTF-8."""
    encoding, width = {"utf-16": ("utf-16-le", 2), "bytes": ("utf-8", 1)}[unit]
    return [len(post.text[:end].encode(encoding)) // width for end in span]


def crooked_record(random: Random, post: Post) -> dict[str, Any]:
    """The same post, said in another way."""
    record: dict[str, Any] = {"text": post.text, "relation": post.relation}
    spans = {"head": post.head, "tail": post.tail}
    way = random.integers(6)
    for name, (start, end) in spans.items():
        words = post.text[start:end]
        if way == 0:
            record[name] = words if post.text.count(words) == 1 else [start, end]
        elif way == 1:
            record[name] = {"start": start, "end": end, "text": words}
        elif way == 2:
            record |= {f"{name}_start": start, f"{name}_end": end, name: words}
        elif way == 3:
            record |= {f"{name}_start": start, f"{name}_end": end, "offsets": "characters"}
        else:
            record["offsets"] = ("utf-16", "bytes")[way - 4]
            record[name] = in_unit(post, (start, end), record["offsets"])
    keys = random.permutation(list(record))
    return {str(key): record[key] for key in keys}


DAMAGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "half a character": lambda plain: plain | {"text": plain["text"] + "\ud83d"},
    "NUL": lambda plain: plain | {"text": plain["text"] + "\0"},
    "blank": lambda plain: plain | {"text": " \n"},
    "number": lambda plain: plain | {"text": 17},
    "outside": lambda plain: plain | {"head": [0, 100_000]},
    "reversed": lambda plain: plain | {"head": [4, 2]},
    "empty": lambda plain: plain | {"tail": [3, 3]},
    "truth": lambda plain: plain | {"tail": [False, True]},
    "fractions": lambda plain: plain | {"tail": [0.0, 2.0]},
    "not there": lambda plain: plain | {"head": "Zoltan"},
    "other words": lambda plain: plain | {"head": {"start": 0, "end": 2, "text": "Zoltan"}},
    "unit": lambda plain: plain | {"offsets": "lines"},
    "list": lambda plain: [plain],
    "cut": lambda plain: json.dumps(plain)[:-3],
    "half": lambda plain: {key: plain[key] for key in plain if key != "tail"},
    "too long": lambda plain: plain | {"text": plain["text"] + " x" * 20_000},
}
"""What no reader takes."""


def line_of(random: Random, record: Any) -> str:
    """JSON as different writers write it."""
    if isinstance(record, str):
        return record
    halves = "\ud83d" in json.dumps(record, ensure_ascii=False)  # which no file holds as such
    ascii_only = halves or bool(random.random() < 0.5)
    separators = ((", ", ": "), (",", ":"), (" ,\t", " : "))[random.integers(3)]
    return json.dumps(record, ensure_ascii=ascii_only, separators=separators)
