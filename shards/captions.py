"""Generated captions: a vision-language model describes every picture of a folder.

`generate` needs no network if the model is a folder. `convert` turns the caption files that CAMIM
published (one Python dict a line, `img_id` and `text`) into an `image,caption` CSV, and back.
"""

import ast
import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from shards.command import Group, Tool
from shards.files import InputError, atomic_path, refuse_foreign
from shards.images import RejectedImage, decoded
from shards.json_files import parse_object, read_lines, write_json
from shards.locks import lock_file
from shards.options import positive
from shards.processors import commit_of, load_processor
from shards.progress import Progress
from shards.tables import read_table

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
PROMPT = "a photo of"
MAX_SIDE = 512  # longer side; captioners scale their input down themselves


@dataclass(frozen=True, kw_only=True)
class ConvertConfig:
    """CAMIM .txt to .csv, or .csv to .txt."""

    POSITIONAL: ClassVar = ("file",)
    file: Path
    """Either format."""
    out: Path
    """.csv or .txt."""

    def __post_init__(self) -> None:
        _require_writer(self.out)


@dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Describe the pictures of a folder."""

    POSITIONAL: ClassVar = ("images",)
    images: Path
    """Folder, searched with its subfolders."""
    model: str
    """Hugging Face id or folder."""
    out: Path
    """.csv, or .txt as CAMIM has it."""
    prompt: str = PROMPT
    """What the model goes on from."""
    batch: int = 8
    """Pictures at a time."""
    max_new_tokens: int = 60
    """Longest caption."""
    device: str = "cpu"
    """Of the model."""

    def __post_init__(self) -> None:
        _require_writer(self.out)
        positive(batch=self.batch, max_new_tokens=self.max_new_tokens)


def _require_writer(out: Path) -> None:
    if out.suffix not in WRITERS:
        raise InputError(f"--out {out}: the name must end in {' or '.join(WRITERS)}")
    refuse_foreign(out, "image,caption\n", "{'img_id': ")


def convert(config: ConvertConfig) -> None:
    """Read either format, write the one that `out` names."""
    captions = read_captions(config.file)
    write_captions(config.out, captions)
    print(f"{config.out}: {len(captions)} captions")


def generate(config: GenerateConfig) -> None:
    """Describe all pictures; after an interruption, those that are left.

    What is done is kept in `<out>.part`, and the model, prompt, versions and the pictures that
    could not be read in `<out>.json`.

    Raises:
        InputError: another process writes `out`, or its `.part` is damaged.
    """
    out = config.out
    with lock_file(out):
        names = find_images(config.images)
        captioner = Captioner(config.model, config.prompt, config.max_new_tokens, config.device)
        part = out.with_name(f"{out.name}.part")
        captions = _read_part(part, captioner.provenance)
        rejects: dict[str, str] = {}
        left = [name for name in names if name not in captions]
        with open(part, "a", encoding="utf-8") as file:
            print(
                f"captions: {len(left):,} of {len(names):,} pictures in {config.images} by "
                f"{config.model} on {config.device}, {config.batch} at a time; writes {out}",
                flush=True,
            )
            starts = range(0, len(left), config.batch)
            for start in Progress(starts, unit="batch", desc="captions", samples=config.batch):
                batch = _open_batch(config.images, left[start : start + config.batch], rejects)
                texts = captioner.describe(list(batch.values())) if batch else []
                for name, caption in zip(batch, texts, strict=True):
                    captions[name] = caption
                    file.write(json.dumps({"image": name, "caption": caption}) + "\n")
                file.flush()
        # In the folder's order, without pictures that are gone since an interruption.
        captions = {name: captions[name] for name in names if name in captions}
        write_captions(out, captions)
        write_json(out.with_name(f"{out.name}.json"), captioner.provenance | {"rejects": rejects})
        part.unlink()
    print(f"{out}: {len(names)} pictures = {len(captions)} captions + {len(rejects)} rejects")


def find_images(folder: Path) -> list[str]:
    """Pictures below a folder, as relative paths, sorted."""
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = sorted(path.relative_to(folder).as_posix() for path in paths)
    if not images:
        raise InputError(f"{folder}: no picture in it ({', '.join(SUFFIXES)})")
    return images


class Captioner:
    """A `transformers` image-text-to-text model, decoding greedily."""

    def __init__(self, model: str, prompt: str, max_new_tokens: int, device: str) -> None:
        import transformers

        if model.startswith(("/", ".", "~")) and not Path(model).is_dir():
            raise InputError(f"--model {model}: no such folder")
        try:
            self.processor = load_processor(model)
            self.model = transformers.AutoModelForImageTextToText.from_pretrained(
                model, trust_remote_code=False
            )
            revision = commit_of(model)
        except (OSError, ValueError, KeyError, ImportError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"--model {model}: no captioner can be loaded ({reason})") from error
        tokenizer = getattr(self.processor, "tokenizer", None)
        if tokenizer and not self.model.config.is_encoder_decoder:
            # A decoder goes on from the last position, which must not be padding: a caption would
            # change with the pictures beside it.
            tokenizer.padding_side = "left"
        self.model.eval().to(device)
        self.prompt, self.max_new_tokens, self.device = prompt, max_new_tokens, device
        self.provenance = {
            "model": model,
            "revision": revision,
            "prompt": prompt,
            "max_new_tokens": max_new_tokens,
            "transformers": transformers.__version__,
        }

    def describe(self, images: Sequence[Image.Image]) -> list[str]:
        """One caption per picture, without the prompt."""
        import torch

        text = self.prompt
        if getattr(self.processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.prompt}]
            message = [{"role": "user", "content": content}]
            text = self.processor.apply_chat_template(message, add_generation_prompt=True)
        inputs = self.processor(
            images=list(images), text=[text] * len(images), return_tensors="pt", padding=True
        ).to(self.device)
        with torch.inference_mode():
            tokens = self.model.generate(
                **inputs, max_new_tokens=self.max_new_tokens, do_sample=False
            )
        # Decoded like the answers, which begin with it (a decoder's), if not with the text given.
        asked = self.processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        answers = self.processor.batch_decode(tokens, skip_special_tokens=True)
        return [
            " ".join(answer.removeprefix(question).split())
            for question, answer in zip(asked, answers, strict=True)
        ]


def captioned(path: Path) -> Image.Image:
    """A small copy of a picture; captioners see no more of it. Errors as `decoded`."""
    picture = decoded(path)
    picture.thumbnail((MAX_SIDE, MAX_SIDE))
    return picture


def _open_batch(
    folder: Path, names: Sequence[str], rejects: dict[str, str]
) -> dict[str, Image.Image]:
    images = {}
    for name in names:
        try:
            images[name] = captioned(folder / name)
        except RejectedImage as error:
            rejects[name] = error.reason
    return images


def _read_part(path: Path, provenance: dict[str, Any]) -> dict[str, str]:
    """Captions of an interrupted run of the same model and prompt; starts the file otherwise."""
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    captions: dict[str, str] = {}
    if lines and lines[0] == json.dumps(provenance).encode():
        # What follows the last line end was cut by the interruption.
        for number, line in enumerate(lines[1:-1], start=2):
            place, advice = f"{path}: line {number}", "delete it and run again"
            fields = parse_object(line, place, advice)
            image, caption = fields.get("image"), fields.get("caption")
            if not (isinstance(image, str) and isinstance(caption, str)):
                raise InputError(f"{place}: needs the texts `image` and `caption`; {advice}")
            captions[image] = caption
    elif lines:
        print(f"{path}: of another model or prompt; starting anew")
    with atomic_path(path) as temporary:
        records = [{"image": name, "caption": caption} for name, caption in captions.items()]
        text = "".join(f"{json.dumps(line)}\n" for line in (provenance, *records))
        temporary.write_text(text, encoding="utf-8")
    return captions


def read_captions(path: Path) -> dict[str, str]:
    """Picture -> caption, of a CAMIM file or an `image,caption` CSV of one caption a picture.

    CAMIM's texts may be empty or begin with a line end; blanks at both ends are cut.
    """
    captions: dict[str, str] = {}
    rows = _csv_rows(path) if path.suffix == ".csv" else _camim_rows(path)
    for number, image, caption in rows:
        if image in captions:
            raise InputError(f"{path}: line {number}: a second caption of {image}")
        captions[image] = caption.strip()
    if not captions:
        raise InputError(f"{path}: holds no caption")
    return captions


def _csv_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    for line, fields in read_table(path, ("image", "caption")).accepted():
        yield line, fields["image"], fields["caption"]


def _camim_rows(path: Path) -> Iterator[tuple[int, str, str]]:
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            fields = ast.literal_eval(line)
            image, caption = fields["img_id"], fields["text"]
        except (ValueError, SyntaxError, KeyError, TypeError, MemoryError, RecursionError) as error:
            raise InputError(f"{path}: line {number}: no CAMIM caption ({error!r})") from error
        if not (isinstance(image, str) and isinstance(caption, str)):
            raise InputError(f"{path}: line {number}: `img_id` and `text` must be texts")
        yield number, image, caption


def write_captions(path: Path, captions: dict[str, str]) -> None:
    """Write the format that the suffix names."""
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", newline="") as file,
    ):
        WRITERS[path.suffix](file, captions)


def _write_csv(file: Any, captions: dict[str, str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("image", "caption"))
    writer.writerows(captions.items())


def _write_camim(file: Any, captions: dict[str, str]) -> None:
    for image, caption in captions.items():
        file.write(f"{ ({'img_id': image, 'text': caption})!r}\n")


WRITERS = {".csv": _write_csv, ".txt": _write_camim}
COMMANDS = {
    "generate": Tool(
        GenerateConfig,
        generate,
        "flickr --model Salesforce/blip-image-captioning-base --out captions.csv",
    ),
    "convert": Tool(ConvertConfig, convert, "cogvlm.txt --out cogvlm.csv"),
}

main = Group(
    "python -m shards captions", COMMANDS,
    "Generate captions, or convert published ones.", "convert",
)  # fmt: skip
