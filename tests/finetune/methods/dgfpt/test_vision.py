"""DGF-PT's eyes: VGG16's 4,096 numbers, features that are computed once, what a run saves."""

import numpy as np
import pytest
import torch

from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.dgfpt.config import DgfptConfig
from finetune.methods.dgfpt.model import Dgfpt
from finetune.methods.dgfpt.vision import PixelTower, SeenBefore, TimmTower
from finetune.run.checkpoint import load_method, save_method
from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions

SMALL = {"vision": "test_resnet", "vision_random": True, "image_size": 32, "objects": 2}


@pytest.fixture
def task(mnre_folder):
    found = Mnre(mnre_folder)
    some = (Region((0, 0, 8, 8), 0.9, "x"),)
    rows = [row for split in ("train", "val", "test") for row in found.read(split)]
    detected = {row.image_id: Regions(row.image_id, (20, 16), some) for row in rows}
    write_regions(mnre_folder / "regions_od.jsonl", {"leaky": False}, detected)
    return found


def load(task, tmp_path, method, tokenizer):
    options = InputOptions(
        images="required", max_length=40, regions=str(task.folder), cache=tmp_path / "cache"
    )
    return load_split(task, "val", tokenizer, method, options)


def build(task, source, **settings):
    torch.manual_seed(0)
    config = DgfptConfig(**SMALL | settings)
    return *Dgfpt.build(config, task.info, Source(str(source))), config


@pytest.mark.slow
def test_vgg_gives_fc7():
    """The oracle is torchvision's VGG16, cut before its last layer, with the same weights."""
    import torchvision

    oracle = torchvision.models.vgg16().eval()
    tower = TimmTower("vgg16.tv_in1k", 0, random_weights=True).build(pretrained=False).eval()
    state = tower.net.state_dict()
    for name, tensor in oracle.state_dict().items():
        for theirs, ours in (
            ("classifier.0", "pre_logits.fc1"),
            ("classifier.3", "pre_logits.fc2"),
        ):
            name = name.replace(theirs, ours)
        if name in state:
            state[name] = tensor.view(state[name].shape)
    tower.net.load_state_dict(state)
    pixels = torch.randint(256, (2, 3, 224, 224), dtype=torch.uint8)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.inference_mode():
        seen = oracle.avgpool(oracle.features((pixels / 255 - mean) / std)).flatten(1)
        torch.testing.assert_close(tower(pixels), oracle.classifier[:6](seen), atol=1e-4, rtol=1e-4)


def test_sizes_of_the_papers_tower():
    """Known without loading 138 million weights."""
    vision = SeenBefore(TimmTower("vgg16.tv_in1k", 0))
    assert (vision.width, vision.size) == (4096, 224)
    assert not list(vision.parameters())


def test_features_are_what_the_tower_sees_and_seen_once(task, tmp_path, tiny_model, monkeypatch):
    method, tokenizer, _ = build(task, tiny_model)
    split = load(task, tmp_path, method, tokenizer)
    batch = split.dataset.collate(np.arange(5))
    assert batch.pixel_values is None and (batch.region_mask.sum(1) == 1).all()
    other, tokenizer, _ = build(task, tiny_model, vision_trained=True)
    plain = load(task, tmp_path, other, tokenizer).dataset.collate(np.arange(5))
    see = method.frozen_vision()
    for features, pixels in (
        (batch.image_features, plain.pixel_values),
        (batch.region_features[:, 0], plain.region_pixels[:, 0]),
    ):
        np.testing.assert_allclose(features.numpy(), see(pixels.numpy()), atol=2e-3)
    assert not batch.region_features[:, 1].any()
    monkeypatch.setattr(PixelTower, "forward", lambda *_: pytest.fail("looked again"))
    again = load(task, tmp_path, method, tokenizer).dataset.collate(np.arange(5))
    assert torch.equal(again.image_features, batch.image_features)


def test_an_interrupted_pass_goes_on(task, tmp_path, tiny_model, monkeypatch):
    method, tokenizer, _ = build(task, tiny_model)
    whole = load(task, tmp_path / "whole", method, tokenizer).dataset.collate(np.arange(30))
    monkeypatch.setattr("finetune.inputs.frozen.CHUNK", 8)
    see, seen = PixelTower.forward, []

    def breaks(self, pixels):
        seen.append(len(pixels))
        if len(seen) == 4:
            raise KeyboardInterrupt
        return see(self, pixels)

    monkeypatch.setattr(PixelTower, "forward", breaks)
    with pytest.raises(KeyboardInterrupt):
        load(task, tmp_path, method, tokenizer)
    split = load(task, tmp_path, method, tokenizer)
    assert seen[:9] == [1, 8, 8, 8, 8, 6, 1, 8, 8]  # 16 of 30 pictures were done
    batch = split.dataset.collate(np.arange(30))
    torch.testing.assert_close(batch.image_features, whole.image_features)


@pytest.mark.parametrize("trained", [False, True])
def test_saved_with_its_tower_only_if_it_learns(task, tmp_path, tiny_model, trained):
    method, tokenizer, config = build(task, tiny_model, vision_trained=trained)
    split = load(task, tmp_path, method, tokenizer)
    directory = tmp_path / "model"
    save_method(
        directory, method, tokenizer, name="dgfpt", config=config, task=task.info,
        inputs={"images": "required", "max_length": 40}, card="# card\n",
    )  # fmt: skip
    names = method.state_dict()
    assert any(name.startswith("vision.tower.") for name in names) == trained
    again, tokenizer, _ = load_method(directory)
    batch = split.dataset.collate(np.arange(6))
    other = load(task, tmp_path, again, tokenizer).dataset.collate(np.arange(6))
    with torch.inference_mode():
        assert torch.equal(method.eval()(batch).logits, again(other).logits)
