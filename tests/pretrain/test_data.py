"""Views, boxes, word pieces and ids of batches; the loader's processes."""

import dataclasses
import io
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from scipy.stats import ks_2samp
from torchvision.transforms import RandomResizedCrop

from pretrain.config import DataConfig
from pretrain.data import pairs as data
from pretrain.data import views
from pretrain.data.batch import PretrainBatch
from pretrain.data.pairs import PairDataset, open_reader, train_batches
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.data.views import Canvas, Part, View, cropped
from pretrain.train import without_effect
from shards.files import InputError
from shards.json_files import read_json
from shards.schema import DetectedObject, PairMeta
from shards.shard import PairPlace, Sample, scan_shard
from shards.stream import CanonicalOrder, RankBatches, ShardReader


def make_dataset(
    shards: Path, *, augment: bool = True, seed: int = 0, size: int = 32, **config
) -> PairDataset:
    reader = open_reader(str(shards), teacher=False)
    captions = [
        text for shard in range(len(reader.index.shards)) for text in reader.captions(shard)
    ]
    return PairDataset(
        reader,
        learn_tokenizer(captions, 200),
        DataConfig(train=str(shards), **config),
        image_size=size,
        patch_size=8,
        seed=seed,
        augment=augment,
    )


def jpeg(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def sample(pixels: np.ndarray, box: tuple | None = None) -> Sample:
    size = (pixels.shape[1], pixels.shape[0])
    meta = PairMeta("a dog", True, "c", "i", size, "s")
    objects = (DetectedObject(box, 0.9, "dog"),) if box else ()
    return Sample("train_00000007", jpeg(pixels), meta, objects)


class OneSample:
    """A reader that knows one sample, at every address."""

    def __init__(self, only: Sample) -> None:
        box = only.objects[0].box if only.objects else (0, 0, 0, 0)
        self.only, self.location = only, "no folder"
        self.index = SimpleNamespace(shards=[SimpleNamespace(stem="s", rows_sha256="0" * 64)])
        self.pair = PairPlace(only.key, 0, only.meta.size, True, (1, 2), box, None)

    def shard(self, number: int) -> "OneSample":
        return self

    def place(self, row: int) -> PairPlace:
        return self.pair

    def image(self, picture: int) -> bytes:
        return self.only.image

    def captions(self, shard: int) -> list[str]:
        return [self.only.meta.caption]


def of_one(only: Sample, shards: Path, **options) -> PairDataset:
    dataset = make_dataset(shards, **options)
    dataset.reader = OneSample(only)
    return dataset


def addresses(number: int) -> list[tuple[int, int, int]]:
    return [(0, pair // 2, pair % 2) for pair in range(number)]


# ------------------------------------------------------------------ views


def test_a_view_depends_on_seed_and_address_alone(pair_shards):
    dataset = make_dataset(pair_shards)
    batch = dataset.__getitems__(addresses(8))
    for number in reversed(range(8)):  # another order, another batch size, another reader
        alone = make_dataset(pair_shards).__getitems__(addresses(8)[number : number + 1])
        assert alone.keys == batch.keys[number : number + 1]
        assert torch.equal(alone.pixel_values[0], batch.pixel_values[number])
        assert torch.equal(alone.patch_weights[0], batch.patch_weights[number])
    later = dataset.__getitems__([(1, *at[1:]) for at in addresses(8)])
    reseeded = make_dataset(pair_shards, seed=1).__getitems__(addresses(8))
    for other in (later, reseeded):
        assert other.keys == batch.keys
        changed = (other.pixel_values != batch.pixel_values).flatten(1).any(1)
        assert changed.all()


def test_box_follows_crop_and_flip(pair_shards):
    """A white box on black: the brightness of every patch is the share that the box covers."""
    pixels = np.zeros((150, 200, 3), np.uint8)
    pixels[40:100, 30:110] = 255
    options = {"photometric": 0.0, "min_visible": 0.0, "size": 64}
    dataset = of_one(sample(pixels, (30, 40, 110, 100)), pair_shards, **options)
    batch = dataset.__getitems__([(epoch, 0, 0) for epoch in range(100)])
    grey = batch.pixel_values.float().mean(1) / 255
    brightness = grey.unflatten(1, (8, 8)).unflatten(3, (8, 8)).mean((2, 4)).flatten(1)
    assert (batch.patch_weights - brightness).abs().max() < 0.15  # a pixel of blur at the edges
    assert (batch.patch_weights - brightness).abs().mean() < 0.01
    assert batch.patch_weights.flatten(1).any(1).float().mean() > 0.8


def test_box_seen_too_little_takes_no_part(pair_shards):
    pixels = np.zeros((96, 96, 3), np.uint8)
    whole, strict = (
        of_one(sample(pixels, (0, 0, 96, 40)), pair_shards, min_visible=limit)
        .__getitems__([(epoch, 0, 0) for epoch in range(60)])
        .patch_weights.any(1)
        for limit in (0.0, 0.6)
    )
    assert 0 < strict.sum() < whole.sum()


def test_pixels_are_plain_uint8(pair_shards):
    """A picture of one colour stays that colour: nothing is normalised here."""
    pixels = np.empty((48, 64, 3), np.uint8)
    pixels[:] = (10, 128, 250)
    batch = of_one(sample(pixels), pair_shards, augment=False).__getitems__(addresses(1))
    assert batch.pixel_values.dtype == torch.uint8
    assert batch.pixel_values.shape == (1, 3, 32, 32)
    difference = batch.pixel_values[0].int() - torch.tensor([10, 128, 250])[:, None, None]
    assert difference.abs().max() <= 3  # JPEG
    assert not batch.patch_weights.any()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_resize_is_that_of_pillow(mode):
    random = np.random.default_rng(0)
    picture = Image.fromarray(random.integers(0, 255, (9, 12, 3), dtype=np.uint8)).convert(mode)
    only = sample(np.asarray(picture.resize((120, 90), Image.Resampling.BICUBIC)))
    view, crop = cropped(only, (10.2, 5.4, 70.5, 80.0), 48)
    assert crop == (10, 5, 71, 80)
    image = Image.open(io.BytesIO(only.image)).convert("RGB")
    expected = image.resize((48, 48), Image.Resampling.BICUBIC, box=(10, 5, 81, 85))
    assert np.abs(view.permute(1, 2, 0).numpy().astype(int) - np.asarray(expected)).max() <= 2


@pytest.mark.parametrize(("size", "reduction"), [(126, 1), (125, 2), (63, 2), (62, 4), (31, 8)])
def test_scaled_decoding_shows_the_same_part(size, reduction):
    """JPEG's own scaling is only a shortcut: same crop, same box, nearly the same pixels."""
    coarse = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    only = sample(np.asarray(Image.fromarray(coarse).resize((511, 383))))
    with mock.patch.object(views, "decode_rows", wraps=views.decode_rows) as decoded:
        view, crop = cropped(only, (50.0, 60.0, 300.0, 251.0), size)
    assert decoded.call_args.args[2] == reduction
    assert crop == pytest.approx((50, 60, 300, 251), abs=reduction)
    box = (crop[0], crop[1], crop[0] + crop[2], crop[1] + crop[3])
    exact = Image.open(io.BytesIO(only.image)).resize((size, size), Image.Resampling.BICUBIC, box)
    exact = torch.from_numpy(np.array(exact)).permute(2, 0, 1)
    assert (view.int() - exact.int()).abs().float().mean() < 3


# ------------------------------------------------------------------ augmentation


def changes(chance: float, flip: float = 0.5) -> list[View]:
    config = DataConfig(train="x", photometric=chance, flip=flip)
    random = np.random.default_rng(0)
    return [views.random_view(random, (64, 48), config) for _ in range(3000)]


def test_how_often_a_view_changes():
    """Two draws of three kinds, applied with the configured probability."""
    assert not any(view.changes for view in changes(0.0))
    for chance in (0.5, 1.0):
        kinds = np.array([view.changes.count(kind) for view in changes(chance) for kind in (1, 2)])
        assert kinds.reshape(-1, 2).mean(0) == pytest.approx(2 / 3 * chance, abs=0.04)
    none = [not any(view.changes) for view in changes(1.0)]
    assert np.mean(none) == pytest.approx(1 / 9, abs=0.02)
    for chance in (0.0, 0.3, 1.0):
        flips = [view.flip for view in changes(0.5, flip=chance)]
        assert np.mean(flips) == pytest.approx(chance, abs=0.03)


def test_changes_are_made_in_their_order():
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    canvas = Canvas(16)
    for made in ((), (0, 0), (1, 2), (2, 1), (0, 2)):
        drawn, expected = np.empty((3, 16, 16), np.uint8), pixels.copy()
        whole = Part(1, 0, 0, 16, 16)
        canvas.draw(pixels, whole, View((0, 0, 16, 16), False, made), drawn)
        for change in made:
            if change:
                (None, canvas.brighten, canvas.sharpen)[change](expected.reshape(16, 48))
        assert np.array_equal(drawn.transpose(1, 2, 0), expected)
        assert np.array_equal(expected, pixels) == (not any(made))


@pytest.mark.parametrize(
    ("ours", "pillows", "tolerance"),
    [("brighten", ImageEnhance.Brightness, 0), ("sharpen", ImageEnhance.Sharpness, 1)],
)
def test_photometric_operations_are_those_of_pillow(ours, pillows, tolerance):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    expected = np.asarray(pillows(Image.fromarray(pixels)).enhance(1.36)).astype(int)
    getattr(Canvas(50), ours)(pixels.reshape(50, 150))
    assert np.abs(pixels - expected).max() <= tolerance


@pytest.mark.parametrize("size", [(768, 512), (500, 500), (1500, 400), (300, 1400)])
def test_random_crop_is_distributed_as_torchvisions(size):
    """Area, aspect and place of 4,000 crops; very long pictures also need the rule's way out."""
    width, height = size
    random, draws = np.random.default_rng(0), 4000
    torch.manual_seed(0)
    ours = np.array([views.random_crop(random, width, height, (0.2, 1.0)) for _ in range(draws)])
    picture = torch.empty(3, height, width)
    theirs = np.array(
        [RandomResizedCrop.get_params(picture, [0.2, 1.0], [3 / 4, 4 / 3]) for _ in range(draws)]
    )[:, [1, 0, 3, 2]]
    left, top, w, h = ours.T
    assert left.min() >= 0 and (left + w).max() <= width + 1e-6
    assert top.min() >= 0 and (top + h).max() <= height + 1e-6
    assert (w / h).min() >= 3 / 4 - 1e-9 and (w / h).max() <= 4 / 3 + 1e-9
    assert (w * h).max() <= width * height
    for quantity in (
        lambda left, top, w, h: w * h / (width * height),
        lambda left, top, w, h: w / h,
        lambda left, top, w, h: (left + w / 2) / width,
        lambda left, top, w, h: (top + h / 2) / height,
    ):
        # Theirs are whole pixels; a step of ours must not count as a difference.
        pair = [np.round(quantity(*crops.T), 2) for crops in (ours, theirs)]
        assert ks_2samp(*pair).statistic < 0.05
        quantiles = [np.quantile(values, (0.05, 0.5, 0.95)) for values in pair]
        assert quantiles[0] == pytest.approx(quantiles[1], abs=0.03)


# ------------------------------------------------------------------ the rest of a batch


def test_word_pieces_are_padded_to_the_batch(pair_shards):
    dataset = make_dataset(pair_shards)
    batch = dataset.__getitems__(addresses(32))
    lengths = batch.attention_mask.sum(1)
    tokenizer = learn_tokenizer(
        [text for shard in range(16) for text in dataset.reader.captions(shard)], 200
    )
    for number, key in enumerate(batch.keys):
        stored = dataset.reader.read(*addresses(32)[number][1:])
        alone = tokenizer(stored.meta.caption)["input_ids"]
        assert stored.key == key
        assert batch.input_ids[number, : lengths[number]].tolist() == alone
        assert batch.matched[number] == stored.meta.matched
    assert (batch.input_ids[batch.attention_mask == 0] == tokenizer.pad_token_id).all()
    assert batch.input_ids.shape[1] == -(-int(lengths.max()) // 8) * 8
    short = [at for at, length in zip(addresses(32), lengths, strict=True) if length <= 8]
    assert dataset.__getitems__(short).input_ids.shape[1] == 8
    assert lengths.max() > 8
    cut = make_dataset(pair_shards, max_length=8).__getitems__(addresses(32))
    assert cut.input_ids.shape[1] == 8 and cut.attention_mask.sum(1).max() == 8
    with pytest.raises(InputError, match=r"data\.max_length 77"):
        make_dataset(pair_shards, max_length=77)


def test_word_pieces_are_made_once_and_made_again_where_they_are_damaged(pair_shards, tmp_path):
    shards = Path(shutil.copytree(pair_shards, tmp_path / "shards"))
    shutil.rmtree(shards / "pieces", ignore_errors=True)
    before = make_dataset(shards).__getitems__(addresses(32))
    (folder,) = (shards / "pieces").iterdir()
    paths = sorted(folder.iterdir())
    contents = [path.read_bytes() for path in paths]
    assert len(paths) == 16
    with mock.patch.object(ShardReader, "captions") as captions:
        dataset = of_one_tokenizer(shards)
        captions.reset_mock()
        assert equal(dataset.__getitems__(addresses(32)), before)
        assert not captions.called
    for damage in (b"", contents[0][:-3], contents[0][:-1] + b"x", contents[1]):
        paths[0].write_bytes(damage)
        assert equal(make_dataset(shards).__getitems__(addresses(32)), before)
        assert paths[0].read_bytes() == contents[0]
    make_dataset(shards, max_length=8).__getitems__(addresses(2))
    assert len(list((shards / "pieces").iterdir())) == 2
    shutil.rmtree(shards / "pieces")
    (shards / "pieces").touch()  # nothing can be written there
    assert equal(make_dataset(shards).__getitems__(addresses(32)), before)


def of_one_tokenizer(shards: Path) -> PairDataset:
    """`make_dataset` with captions taken from another reader, for one whose own are not to be
    read."""
    texts = [sample.meta.caption for n in range(16) for sample in ShardReader(shards).samples(n)]
    tokenizer = learn_tokenizer(texts, 200)
    reader = open_reader(str(shards), teacher=False)
    config = DataConfig(train=str(shards))
    return PairDataset(reader, tokenizer, config, image_size=32, patch_size=8, seed=0, augment=True)


def test_equal_ids_mean_equal_caption_or_picture(pair_shards):
    dataset = make_dataset(pair_shards)
    ids = dataset.__getitems__(addresses(32)).ids
    metas = [dataset.reader.read(*at[1:]).meta for at in addresses(32)]
    for column, field in enumerate(("caption_id", "image_id")):
        names = np.array([getattr(meta, field) for meta in metas])
        hashes = ids[:, column].numpy()
        assert np.array_equal(names[:, None] == names, hashes[:, None] == hashes)
    assert len(set(ids[:, 1].tolist())) == 16  # two pairs each


@pytest.mark.parametrize("size", [16, 32])  # 16: decoded at half size
def test_undecodable_picture_is_named(size, pair_shards, tmp_path):
    shutil.copytree(pair_shards, tmp_path / "shards")
    path = sorted((tmp_path / "shards").glob("*.tar"))[3]
    index = read_json(tmp_path / "shards" / "index.json")
    del index["checksums"]  # else they tell first
    (tmp_path / "shards" / "index.json").write_text(json.dumps(index))
    with open(path, "r+b") as file:
        (member,) = scan_shard(file.fileno(), str(path))
        file.seek(member.image_at)
        file.write(bytes(member.image_size))
    dataset = make_dataset(tmp_path / "shards", size=size, augment=False)
    with pytest.raises(InputError, match=f"^{member.key}: undecodable image in shard .*") as caught:
        dataset.__getitems__(addresses(8))
    assert "\n" not in str(caught.value)


def test_a_picture_of_another_size_than_its_sample_says(pair_shards):
    true = sample(np.zeros((60, 80, 3), np.uint8))
    for size in ((80, 64), (81, 60), (60, 80)):
        meta = dataclasses.replace(true.meta, size=size)
        dataset = of_one(dataclasses.replace(true, meta=meta), pair_shards, augment=False)
        with pytest.raises(InputError, match="train_00000007: image in shard is not of size"):
            dataset.__getitems__(addresses(1))


CAPTIONS = ("", "a dog", "é中 \U0001f600 \x00 [MASK] [PAD]", "A. B! " * 90, " \n\t", "xyz" * 300)


def test_word_pieces_are_those_of_transformers():
    tokenizer = learn_tokenizer([*CAPTIONS, "the cat sat"], 200)
    pieces = data.batch_tokenizer(tokenizer, 24).encode_batch_fast(list(CAPTIONS))
    expected = tokenizer(
        list(CAPTIONS), padding=True, pad_to_multiple_of=8, truncation=True, max_length=24
    )
    assert [one.ids for one in pieces] == expected["input_ids"]
    assert [one.attention_mask for one in pieces] == expected["attention_mask"]


# ------------------------------------------------------------------ loading


def equal(one: PretrainBatch, two: PretrainBatch) -> bool:
    pairs = zip(vars(one).values(), vars(two).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b for a, b in pairs)


def test_pictures_of_a_block_are_decoded_once_and_shown_as_alone(pair_shards):
    """Five steps that share pictures: the same batches as one by one, fewer decodings."""
    dataset = make_dataset(pair_shards)
    order = CanonicalOrder(
        [2] * 16, seed=0, together=2, pictures=lambda shard: dataset.reader.row_pictures(shard)
    )
    batches = RankBatches(order, rank=0, world=1, micro_batch_size=8)
    with mock.patch.object(views, "decode_rows", wraps=views.decode_rows) as decoded:
        blocks = list(itertools.islice(batches.blocks(), 2))
        together = [batch for block in blocks for batch in dataset.block(block)]
    assert decoded.call_count == 16  # each of the 16 pictures once, of an epoch of 32 pairs
    for batch, addresses in zip(together, batches, strict=False):
        alone = make_dataset(pair_shards).__getitems__(addresses)
        assert equal(batch, alone) and len(set(batch.ids[:, 1].tolist())) == 8
    loaded = train_batches(dataset, batches, workers=2, pin=False)
    assert all(equal(batch, next(loaded)) for batch in together)


def test_workers_give_the_same_batches(pair_shards):
    dataset = make_dataset(pair_shards)
    order = CanonicalOrder([2] * 16, seed=0)
    streams = [
        train_batches(
            dataset,
            RankBatches(order, rank=0, world=1, micro_batch_size=6),
            workers=workers,
            pin=False,
        )
        for workers in (0, 2)
    ]
    seen = []
    for _ in range(8):  # into the second epoch
        one, two = (next(stream) for stream in streams)
        assert equal(one, two)
        seen += one.keys
    assert len(set(seen[:32])) == 32


def test_kept_patches_are_a_function_of_seed_and_sample(pair_shards):
    dataset = make_dataset(pair_shards, keep_patches=0.5)
    addresses = [(0, shard, 0) for shard in range(6)]
    together = dataset.__getitems__(addresses)
    kept = together.kept_patches
    assert kept.shape == (6, 8) and (kept.diff(dim=1) > 0).all() and kept.max() < 16
    assert len({tuple(row) for row in kept.tolist()}) == 6
    alone = [dataset.__getitems__([address]).kept_patches for address in reversed(addresses)]
    assert torch.equal(torch.cat(alone[::-1]), kept)
    for changed in (make_dataset(pair_shards, keep_patches=0.5, seed=1), dataset):
        other = changed.__getitems__([(int(changed is dataset), shard, 0) for shard in range(6)])
        assert not torch.equal(other.kept_patches, kept)
    whole = make_dataset(pair_shards).__getitems__(addresses)
    assert whole.kept_patches is None
    assert torch.equal(whole.pixel_values, together.pixel_values)
    clean = make_dataset(pair_shards, keep_patches=0.5, augment=False)
    assert clean.__getitems__(addresses).kept_patches is None  # validation


def test_pairs_kept_together_where_there_are_none_is_said(pair_shards):
    """Two captions a picture: nothing to say; one, or a format that repeats pictures: a line."""
    reader = ShardReader(pair_shards)
    settings = DataConfig(train=str(pair_shards), steps_per_decode=2)
    assert without_effect(settings, reader) == ""
    count = reader.index.samples
    reader.index = dataclasses.replace(reader.index, shards=tuple(
        dataclasses.replace(shard, pictures=shard.samples) for shard in reader.index.shards
    ))  # fmt: skip
    assert reader.index.pictures == count
    line = without_effect(settings, reader)
    assert line.startswith("data.steps_per_decode 2 has no effect") and "convert" not in line
    reader.index = dataclasses.replace(reader.index, format=1)
    assert "`python -m shards convert`" in without_effect(settings, reader)
    assert without_effect(DataConfig(train=str(pair_shards)), reader) == ""
