"""`python -m finetune generate pictures | scores`: TMR's side inputs, made anew.

pictures  one a picture of the task, painted by Stable Diffusion from the post it came with (the
          `generate` extra); what is there already stays, so an interrupted run goes on
scores    how well original and generated pictures match their posts, by a CLIP

Neither looks at a label. TMR's own scores come from an estimator that was not published; these are
ours: `strong` is the share of the split's other posts that match the picture less than its own does
(a half for a picture that says nothing), `weak` is 1 - strong.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError

from finetune.config import Split, TaskOptions
from finetune.tasks.base import Task
from finetune.tasks.reading import read_object
from shards.command import Group, Tool
from shards.files import InputError, atomic_path
from shards.images import decoded
from shards.json_files import read_json, write_json
from shards.locks import lock
from shards.options import positive
from shards.processors import load_processor

FOLDER = "diffusion_pic"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError)
"""What loading a model that is absent, incomplete or damaged raises."""
LIBRARIES = ("diffusers", "transformers", "stable_diffusion", None)
"""Where the parts of a pipeline come from; the third is `diffusers`' own safety checker."""
Paint = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]
"""Prompts and their seeds -> pictures."""


def posts_of(task: Task, split: str) -> dict[str, str]:
    """Picture -> the words of the first post that it came with; a post without one has none."""
    posts: dict[str, str] = {}
    for row in task.read(split):
        if row.image_id is not None:
            posts.setdefault(row.image_id, " ".join(row.tokens))
    return posts


# ---- pictures ------------------------------------------------------------------------------------


def paint_all(
    posts: Mapping[str, str], folder: Path, paint: Paint, settings: Mapping[str, Any], batch: int
) -> int:
    """Paint what `folder` lacks; returns how many pictures were new.

    A picture's seed follows from its name, so it does not depend on what else is painted.

    Raises:
        InputError: the folder holds pictures made with other settings.
    """
    from tqdm import tqdm

    record = folder / "generated.json"
    _same_settings(record, settings)
    todo = [name for name in posts if not (folder / name).is_file()]
    bar = tqdm(total=len(todo), desc=str(folder), disable=None)
    for start in range(0, len(todo), batch):
        names = todo[start : start + batch]
        seeds = [zlib.crc32(f"{settings['seed']} {name}".encode()) for name in names]
        for name, picture in zip(names, paint([posts[n] for n in names], seeds), strict=True):
            with atomic_path(folder / name) as temporary:
                picture.convert("RGB").save(temporary, format="JPEG", quality=95)
        bar.update(len(names))
    bar.close()
    return len(todo)


def _same_settings(record: Path, settings: Mapping[str, Any]) -> None:
    if record.is_file():
        before = read_object(record, {}, "remove it if its folder's pictures are whole")
        if before != settings:
            changed = [key for key in settings if before.get(key) != settings[key]]
            raise InputError(
                f"{record.parent}: made with another {', '.join(changed)}; choose another "
                "--generated, or give the same settings"
            )
    write_json(record, dict(settings), checksum=True)


def stable_diffusion(model: str, steps: int, device: str) -> Paint:
    """TMR's pipeline: Stable Diffusion 2 with an Euler scheduler, half precision on a GPU."""
    try:
        from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline
    except ImportError:
        raise InputError("painting needs diffusers: pip install 'fusion-mre[generate]'") from None
    import torch

    _refuse_own_code(Path(model))
    kind = torch.float16 if device == "cuda" else torch.float32
    try:
        pipeline = StableDiffusionPipeline.from_pretrained(
            model,
            scheduler=EulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler"),
            torch_dtype=kind,
            use_safetensors=True,
        )
    except UNREADABLE as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(
            f"--model {model}: no Stable Diffusion that diffusers can load ({reason}); give the "
            "hub id of one, or the whole folder (model_index.json, scheduler/, unet/, vae/, …) "
            "that its save_pretrained wrote"
        ) from None
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)

    def paint(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        # One each: a picture's noise does not depend on those that are painted beside it.
        generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        return pipeline(list(prompts), num_inference_steps=steps, generator=generators).images

    return paint


def _refuse_own_code(folder: Path) -> None:
    """Of a local pipeline `diffusers` imports whatever module `model_index.json` names; before it
    runs code of the hub's it wants leave.

    Raises:
        InputError: a part that is neither of `diffusers` nor of `transformers`.
    """
    index = folder / "model_index.json"
    for name, part in (read_json(index) if index.is_file() else {}).items():
        if isinstance(part, list) and part and part[0] not in LIBRARIES:
            raise InputError(f"{index}: {name} is code of its own ({part[0]}), which is never run")


# ---- scores --------------------------------------------------------------------------------------


def matching_share(pictures: np.ndarray, posts: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """(N,) share of the other posts that match a picture less than its own, ties by half.

    Args:
        pictures: (N, E) unit vectors. posts: (N, E) unit vectors, row i of picture i.
    """
    if len(pictures) < 2:
        return np.full(len(pictures), 0.5)
    shares = []
    for start in range(0, len(pictures), chunk):
        similar = pictures[start : start + chunk] @ posts.T  # (n, N)
        rows = np.arange(len(similar))
        own = similar[rows, start + rows][:, None]
        # Its own post is compared with itself once: half a tie, taken off again.
        wins = (similar < own).sum(1) + 0.5 * (similar == own).sum(1) - 0.5
        shares.append(wins / (len(posts) - 1))
    return np.concatenate(shares)


class Clip:
    """A CLIP of `transformers` that gives unit vectors of pictures and texts."""

    def __init__(self, source: str, device: str) -> None:
        from transformers import CLIPModel

        from pretrain.checkpoint.remote import resolve
        from pretrain.checkpoint.strict import read_transformers

        directory = resolve(source)
        self.model = read_transformers(CLIPModel, directory).eval().to(device)
        self.processor = load_processor(directory, local_files_only=True)
        self.device = device

    def __call__(self, files: Sequence[Path], texts: Sequence[str]) -> Iterator[np.ndarray]:
        """(2, n, E): pictures and texts, some at a time. InputError: an unreadable picture."""
        import torch

        for start in range(0, len(files), 32):
            batch = slice(start, start + 32)
            inputs = self.processor(
                text=list(texts[batch]),
                images=[decoded(path) for path in files[batch]],
                return_tensors="pt",
                padding=True,
                truncation=True,
            ).to(self.device)
            with torch.inference_mode():
                output = self.model(**inputs)
            yield torch.stack([output.image_embeds, output.text_embeds]).float().cpu().numpy()


def write_scores(
    posts: Mapping[str, str], folder: Path, clip: Clip, out: Path, split: str, which: str
) -> None:
    """`{which}{split}_weight_{strong,weak}.txt` in `out`, as TMR's: `img_id<TAB>number` a line."""
    if not posts:
        raise InputError(f"{folder}: no post of {split} has a picture; choose others with --split")
    names = list(posts)
    files = [folder / name for name in names]
    pictures, texts = np.concatenate(list(clip(files, list(posts.values()))), axis=1)
    strong = matching_share(pictures, texts)
    for strength, values in (("strong", strong), ("weak", 1 - strong)):
        with atomic_path(out / f"{which}{split}_weight_{strength}.txt") as temporary:
            lines = (f"{name}\t{value:.6f}\n" for name, value in zip(names, values, strict=True))
            temporary.write_text("".join(lines), encoding="utf-8")


# ---- command -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(TaskOptions):
    """What both kinds ask for."""

    split: tuple[Split, ...] = ()
    """Which; none: all there are."""
    device: str = "auto"
    """cpu, cuda, …; auto: cuda where there is one."""
    generated: str = FOLDER
    """Folder of the generated pictures, in --data."""

    def pick_device(self) -> str:
        """The device as torch names it."""
        import torch

        return (
            self.device if self.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        )


@dataclass(frozen=True, kw_only=True)
class PicturesConfig(GenerateConfig):
    """A picture of each sentence, by Stable Diffusion."""

    model: str = "stabilityai/stable-diffusion-2"
    """Hub id or folder."""
    seed: int = 0
    """With the picture's name, its seed."""
    steps: int = 50
    """Denoising steps."""
    batch: int = 4
    """Pictures at a time."""

    def __post_init__(self) -> None:
        positive(steps=self.steps, batch=self.batch)


@dataclass(frozen=True, kw_only=True)
class ScoresConfig(GenerateConfig):
    """How well sentence and pictures match, by a CLIP."""

    model: str = "openai/clip-vit-base-patch32"
    """Hub id or folder."""
    out: str = "scores"
    """Folder of the scores, in --data."""


def generate_pictures(config: PicturesConfig) -> None:
    """Paint what is missing."""
    task, splits = config.open(), config.splits(config.split)
    paint = stable_diffusion(config.model, config.steps, config.pick_device())
    settings = {"model": config.model, "steps": config.steps, "seed": config.seed}
    for split in splits:
        folder = config.data / config.generated / split
        with lock(folder):
            made = paint_all(posts_of(task, split), folder, paint, settings, config.batch)
        print(f"{folder}: {made} new pictures")


def generate_scores(config: ScoresConfig) -> None:
    """Of the pictures, and of the generated ones where there are any."""
    task, splits = config.open(), config.splits(config.split)
    clip, out = Clip(config.model, config.pick_device()), config.data / config.out
    for split in splits:
        posts = posts_of(task, split)
        generated = config.data / config.generated / split
        with lock(out, f".{split}.lock"):
            write_scores(posts, task.image_folder(split), clip, out, split, "")
            if generated.is_dir():
                write_scores(posts, generated, clip, out, split, "dif_")
        print(f"{out}: scores of {len(posts)} pictures of {split}")


TOOLS = {
    "pictures": Tool(PicturesConfig, generate_pictures, "--data MNRE --split train"),
    "scores": Tool(ScoresConfig, generate_scores, "--data MNRE --split train"),
}
main = Group(
    "python -m finetune generate", TOOLS,
    "Make TMR's generated pictures, or correlation scores.", "pictures",
)  # fmt: skip
