"""The encoder from Python, as users of `transformers` expect it, against validation's own way."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from pretrain.config import DataConfig
from pretrain.data.pairs import PairDataset, open_reader
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.processor import FusionProcessor
from shards.corpora import captions
from shards.files import InputError
from shards.write import build

ROOT = Path(__file__).resolve().parents[2]
SIDE = 32
SIZES = FusionEncoderConfig(
    vocab_size=60, hidden_size=16, num_attention_heads=2, intermediate_size=32, text_layers=1,
    fusion_layers=1, max_position_embeddings=12, image_size=SIDE, patch_size=8,
    vision_hidden_size=16, vision_layers=1, vision_heads=2, projection_size=8,
    image_mean=(0.5, 0.4, 0.3), image_std=(0.2, 0.3, 0.25),
)  # fmt: skip
CAPTIONS = ["a dog", "the cat sees a dog", "the mayor of Paris", "a bird and the cat", "nobody"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    encoder = FusionEncoder(SIZES)  # in training mode, with its dropout
    for parameter in encoder.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    folder = tmp_path_factory.mktemp("api") / "model"
    encoder.save_pretrained(folder, learn_tokenizer(CAPTIONS, 60))
    return folder


@pytest.fixture(scope="module")
def encoder(directory) -> FusionEncoder:
    return FusionEncoder.from_pretrained(directory)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> list[Path]:
    """A JPEG of its kept bytes, one to be shrunk, a turned one, a transparent PNG, a palette."""
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)

    def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
        coarse = random.integers(0, 255, (6, 8, len(mode)), dtype=np.uint8)
        return Image.fromarray(coarse, mode).resize((width, height), Image.Resampling.BICUBIC)

    turned = Image.Exif()
    turned[0x0112] = 6
    noise(64, 48).save(folder / "0.jpg", quality=90)
    noise(1600, 1200).save(folder / "1.jpg", quality=95)
    noise(200, 90).save(folder / "2.jpg", exif=turned)
    noise(90, 120, "RGBA").save(folder / "3.png")
    noise(70, 40).quantize(16).save(folder / "4.png")
    return sorted(folder.iterdir())


# ---------------------------------------------------------------------- as validation does


def validation_batch(directory: Path, pictures: list[Path]):
    lines = ["image,caption", *(f"{p.name},{c}" for p, c in zip(pictures, CAPTIONS, strict=True))]
    table = pictures[0].parent.parent / f"{directory.parent.name}.csv"
    table.write_text("\n".join(lines))
    out = table.with_suffix("")
    build(captions(pictures[0].parent, table), out, shard_size=100)
    reader = open_reader(str(out), teacher=False)
    dataset = PairDataset(
        reader, FusionProcessor.from_pretrained(directory).tokenizer,
        DataConfig(train=str(out), max_length=8), image_size=SIDE, patch_size=8, seed=0,
        augment=False,
    )  # fmt: skip
    metas = [reader.read(0, row).meta for row in range(len(pictures))]
    return dataset.__getitems__([(0, 0, row) for row in range(len(pictures))]), metas


@torch.inference_mode()
def test_features_are_those_of_validation(directory, encoder, pictures):
    batch, metas = validation_batch(directory, pictures)
    paths = [pictures[0].parent / meta.image_id for meta in metas]
    image = encoder.image_feat(encoder.encode_image(batch.pixel_values))
    text = encoder.text_feat(encoder.encode_text(batch.input_ids, batch.attention_mask))
    assert torch.equal(encoder.processor.pixels(paths), batch.pixel_values)
    ours = encoder.embed_images((path for path in paths), batch_size=2)
    torch.testing.assert_close(ours, image, rtol=0, atol=1e-6)
    embedded = encoder.embed_text((meta.caption for meta in metas), batch_size=2)
    torch.testing.assert_close(embedded, text, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.norm(dim=1), torch.ones(5))
    similarity = encoder.similarity([meta.caption for meta in metas][:2], paths)
    torch.testing.assert_close(similarity, text[:2] @ image.T, rtol=0, atol=1e-5)


def test_pil_pictures_and_tensors(encoder, pictures):
    processor = encoder.processor
    by_path = processor.pixels(pictures).int()
    by_picture = processor.pixels([Image.open(path) for path in pictures]).int()
    # A path goes through JPEG and its scaled decoding, opened pictures do not.
    assert (by_path - by_picture).abs().float().mean() < 2
    assert torch.equal(by_path[0], by_picture[0]), "a small JPEG's pixels are the same"
    raw = torch.from_numpy(np.array(Image.open(pictures[0]))).permute(2, 0, 1)
    assert torch.equal(processor.pixels([raw])[0].int(), by_path[0])
    square = torch.randint(0, 256, (3, SIDE, SIDE), dtype=torch.uint8)
    assert torch.equal(processor.pixels([square])[0], square)


def test_training_goes_on_as_it_was(directory, encoder):
    again = FusionEncoder.from_pretrained(directory)
    assert not again.training
    again.train()
    assert torch.equal(again.embed_text(["a dog"]), encoder.embed_text(["a dog"]))
    assert again.training and again.text.training
    assert not again.embed_text(["a dog"]).requires_grad


def test_nothing_gives_nothing(encoder):
    assert encoder.embed_text([]).shape == encoder.embed_images([]).shape == (0, 8)


def test_a_long_text_is_cut_with_one_warning(encoder):
    words = " ".join(["dog"] * 10)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        long = encoder.embed_text([words + " cat" * 90, "a dog", words + " bird"], batch_size=1)
    assert len(told) == 1
    assert str(told[0].message).startswith("2 of 3 texts are longer than the model's 12 positions")
    assert torch.equal(long[0], long[2])
    with warnings.catch_warnings(action="error"):
        torch.testing.assert_close(encoder.embed_text([words])[0], long[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e, p: e.embed_text("a dog"), "a list of texts is needed"),
        (lambda e, p: e.embed_text(["a", None]), "text 1: NoneType is no text"),
        (lambda e, p: e.embed_text(["a", "\ud83d"]), "text 1: holds half of a surrogate pair"),
        (lambda e, p: e.embed_images(p), "a list of pictures is needed"),
        (lambda e, p: e.embed_images([p.parent / "none.jpg"]), "none.jpg: no such file"),
        (lambda e, p: e.embed_images([torch.rand(3, 8, 8)]), r"image 0: a \(3, H, W\) uint8"),
        (lambda e, p: e.embed_images([3]), "image 0: a path, PIL picture or tensor"),
        (lambda e, p: e.embed_images(iter([p, p, 3]), batch_size=2), "image 2: a path, PIL"),
        (lambda e, p: e.embed_images([p], batch_size=0), "batch_size 0: must be a positive"),
        (lambda e, p: e.embed_text(["a"], batch_size=-1), "batch_size -1: must be a positive"),
        (lambda e, p: FusionEncoder(SIZES).embed_text(["a"]), "this encoder has no processor"),
    ],
)
def test_what_is_no_input_is_named(call, message, encoder, pictures):
    with pytest.raises(InputError, match=message) as told:
        call(encoder, pictures[0])
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------------- floats


def test_floats_are_normalised_by_declaration(encoder):
    raw = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    for pixels, message in [
        (raw / 255, "floats in 0…1, not normalised"),
        (raw.float(), "floats in 0…255, not normalised"),
        (raw.long(), "int64, neither uint8 nor float"),
    ]:
        with pytest.raises(InputError, match=message):
            encoder.encode_image(pixels)
        with pytest.raises(InputError, match=message):
            encoder(pixels, torch.tensor([[2, 3]] * 2), torch.ones(2, 2))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (SIZES.image_mean, SIZES.image_std))
    expected = encoder.encode_image(raw)
    for declared in (False, True):
        states = encoder.encode_image((raw / 255 - mean) / std, normalized=declared)
        torch.testing.assert_close(states, expected, rtol=1e-4, atol=1e-4)
    encoder.encode_image(torch.rand(2, 3, SIDE, SIDE), normalized=True)


def test_training_pixels_wait_for_no_device(encoder):
    """uint8 is not looked at: its values never come to the host."""
    pixels = torch.zeros(1, 3, SIDE, SIDE, dtype=torch.uint8, device="meta")
    with torch.device("meta"):
        assert FusionEncoder(SIZES).encode_image(pixels).shape == (1, 17, 16)


# ---------------------------------------------------------------------- transformers


def test_an_image_processor_of_transformers_reads_the_directory(directory, encoder, pictures):
    reader = AutoImageProcessor.from_pretrained(directory)
    images = [Image.open(path).convert("RGB") for path in (pictures[0], pictures[4])]
    pixels = reader(images=images, return_tensors="pt")["pixel_values"]
    mean, std = encoder.pixel_statistics
    ours = (encoder.processor.pixels(images) - mean) / std
    # Pillow's resize and PyTorch's differ by up to two of 255 levels.
    assert (pixels - ours).abs().max() < 2.5 / 255 / min(SIZES.image_std)


AUTO = """
import sys
{first}
import pretrain
assert {late} or not sys.modules.keys() & {{"torch", "transformers"}}
import torch
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer
place = {directory!r}
tokenizer = AutoTokenizer.from_pretrained(place)
assert tokenizer.model_max_length == 12
config = AutoConfig.from_pretrained(place)
assert (config.model_type, config.projection_size) == ("fusion-mre", 8)
model, processor = AutoModel.from_pretrained(place), AutoProcessor.from_pretrained(place)
assert type(model) is pretrain.FusionEncoder and not model.training
inputs = processor(text=["a dog", "the cat"], images=[{picture!r}] * 2, return_tensors="pt")
output = model(**inputs)
assert torch.equal(model.text_feat(output.text_embeds), model.embed_text(["a dog", "the cat"]))
assert AutoModel.from_pretrained(place, dtype=torch.bfloat16).text_proj.weight.dtype != torch.float
drawn = AutoModel.from_config(config)
assert type(drawn) is pretrain.FusionEncoder and drawn.config == model.config
shapes = [{{name: value.shape for name, value in m.state_dict().items()}} for m in (drawn, model)]
assert shapes[0] == shapes[1] and not torch.equal(drawn.text_proj.weight, model.text_proj.weight)
print("done")
"""


def python(code: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", f"{code}\nfrom shards.processes import leave\nleave()"]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    "first", ["", "from transformers import AutoModel", "from transformers import BertModel"]
)
def test_auto_classes_after_import(first, directory, pictures):
    code = AUTO.format(
        first=first, late=bool(first), directory=str(directory), picture=str(pictures[0])
    )
    result = python(code)
    assert result.stdout == "done\n" and not result.stderr, result.stderr


def test_importing_is_cheap_and_versions_are_there():
    result = python(
        "import sys, shards, pretrain, finetune\n"
        "print(len({shards.__version__, pretrain.__version__, finetune.__version__}))\n"
        "print(sorted(sys.modules.keys() & {'torch', 'transformers', 'numpy'}))\n"
        "from pretrain import FusionEncoder\n"
        "from finetune import Extractor\n"
        "print(FusionEncoder.__name__, Extractor.__name__)\n"
        "try:\n    pretrain.Nothing\nexcept AttributeError as error:\n    print(error)\n"
    )
    assert result.stdout.splitlines() == [
        "1", "[]", "FusionEncoder Extractor", "module 'pretrain' has no attribute 'Nothing'",
    ], result.stderr  # fmt: skip


def test_a_directory_of_before_is_read_as_it_was(directory, encoder, tmp_path):
    """As commit 265d405 wrote it: no kind of image processor, no longest text."""
    old = tmp_path / "old"
    encoder.save_pretrained(old, encoder.processor.tokenizer)
    preprocessor = {"size": {"height": SIDE, "width": SIDE}, "resample": "bicubic"}
    preprocessor |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25]}
    (old / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    tokens = json.loads((old / "tokenizer_config.json").read_text()) | {"model_max_length": 10**30}
    (old / "tokenizer_config.json").write_text(json.dumps(tokens))
    again = FusionEncoder.from_pretrained(old)
    assert torch.equal(again.embed_text(CAPTIONS), encoder.embed_text(CAPTIONS))
    with pytest.warns(UserWarning, match="1 of 1 texts"):
        again.embed_text(["dog " * 50])


# ---------------------------------------------------------------------- README


def test_the_lines_of_the_readme_run(directory, pictures, tmp_path):
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## From Python\n")[1]
    code = section.split("```python\n")[1].split("```")[0]
    code = code.replace("MODEL_DIR", str(directory)).replace("17.jpg", str(pictures[0]))
    result = python(code)
    assert result.returncode == 0 and result.stdout and not result.stderr, result.stderr
