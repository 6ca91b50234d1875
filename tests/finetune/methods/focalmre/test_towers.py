"""A text tower and a picture tower of different origin, side by side."""

import dataclasses

import pytest
import torch
from parts_focalmre import TASK, build, some_batch

from finetune.methods.base import Source
from finetune.methods.focalmre.model import FocalMRE, FocalMREConfig
from finetune.methods.towers.pair import PictureTower, TwoTowers, named_tower, picture_states
from shards.files import InputError


@pytest.fixture(scope="module")
def bert(tmp_path_factory, tiny_model):
    """A tiny BERT directory."""
    from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedConfig

    tokenizer = AutoTokenizer.from_pretrained(tiny_model, config=PreTrainedConfig())
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    BertModel(
        BertConfig(vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=2,
                   num_attention_heads=2, intermediate_size=48, max_position_embeddings=64),
        add_pooling_layer=False,
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """The vision side of a tiny CLIP, as a directory."""
    from transformers import CLIPVisionConfig, CLIPVisionModel

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    CLIPVisionModel(
        CLIPVisionConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                         num_attention_heads=2, image_size=16, patch_size=8)
    ).save_pretrained(folder)  # fmt: skip
    return folder


def test_text_of_a_fusion_encoder_is_its_whole_bert(tiny_model):
    """Text layers, then the fusion layers on the text alone = the BERT that was cut in two."""
    from pretrain.checkpoint.hub import load_text_tower

    method = build(tiny_model)
    batch = some_batch(method)
    mask = batch.attention_mask.clone()
    mask[1, 12:] = False
    batch = dataclasses.replace(batch, attention_mask=mask)
    bert, _ = load_text_tower(tiny_model)
    with torch.inference_mode():
        expected = bert.eval()(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        torch.testing.assert_close(method.read(batch, "all"), expected, atol=1e-5, rtol=1e-5)


def test_clip_states_are_normed(clip):
    """`post_layernorm` on every token, by hand; the pooled output is the class token's."""
    from transformers import CLIPVisionModel

    model = CLIPVisionModel.from_pretrained(clip)
    pixels = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]
    with torch.inference_mode():
        output = model((pixels / 255 - mean) / std)
        found = named_tower(str(clip)).eval()(pixels)
        expected = model.post_layernorm(output.last_hidden_state)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[:, 0], output.pooler_output, atol=1e-5, rtol=1e-5)


def test_timm_states(tiny_model):
    """`forward_features` of the normalised picture; registers are left out."""
    from timm.models import create_model

    tower = named_tower("test_vit", random_weights=True).eval()
    size = tower.description["image_size"]
    pixels = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    mean, std = (torch.tensor(tower.description[key])[:, None, None] for key in ("mean", "std"))
    with torch.inference_mode():
        expected = tower.net.forward_features((pixels / 255 - mean) / std)
        torch.testing.assert_close(tower(pixels), expected, atol=1e-5, rtol=1e-5)
        net = create_model("test_vit", num_classes=0, reg_tokens=3).eval()
        states = PictureTower(net, tower.description).eval()(pixels)
        every = net.forward_features((pixels / 255 - mean) / std)
    torch.testing.assert_close(states, every[:, [0, *range(4, every.shape[1])]])


def test_a_bert_and_a_clip_saved_and_loaded(tmp_path, bert, clip):
    """The run stands on its own: the CLIP folder may be gone; its picture tower can go on."""
    import shutil

    from finetune.run.checkpoint import load_method, save_method

    here = tmp_path / "clip"
    shutil.copytree(clip, here)
    config = FocalMREConfig(vision=str(here), num_grounded=2, num_detected=1)
    torch.manual_seed(0)
    method, tokenizer = FocalMRE.build(config, TASK, Source(str(bert)))
    assert isinstance(method.encoder, TwoTowers) and method.image_size == 16
    batch = some_batch(method)
    save_method(tmp_path / "run", method, tokenizer, name="focalmre", config=config, task=TASK,
                inputs={"images": "required", "max_length": 40}, card="# card\n")  # fmt: skip
    shutil.rmtree(here)
    loaded, _, _ = load_method(tmp_path / "run")
    with torch.inference_mode():
        assert torch.equal(method.eval()(batch).logits, loaded(batch).logits)
    again, _ = FocalMRE.build(FocalMREConfig(), TASK, Source(str(tmp_path / "run")))
    with torch.inference_mode():
        torch.testing.assert_close(
            picture_states(again.eval().encoder, batch.pixel_values),
            picture_states(method.encoder, batch.pixel_values),
        )
    (tmp_path / "run" / "checksums.json").unlink()
    (tmp_path / "run" / "vision.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"its picture tower cannot be loaded"):
        FocalMRE.build(FocalMREConfig(), TASK, Source(str(tmp_path / "run")))
    (tmp_path / "run" / "vision.json").write_text("{}")
    with pytest.raises(InputError, match=r"vision\.json: damaged \(no image_size"):
        FocalMRE.build(FocalMREConfig(), TASK, Source(str(tmp_path / "run")))


def test_towers_that_cannot_be_had(tmp_path, bert, clip):
    with pytest.raises(InputError, match=r"no picture tower.*--model\.vision"):
        FocalMRE.build(FocalMREConfig(), TASK, Source(str(bert)))
    with pytest.raises(InputError, match=r"--model\.vision no_such_vit: timm cannot load it"):
        named_tower("no_such_vit", random_weights=True)
    with pytest.raises(InputError, match="not a ViT with a class token"):
        named_tower("test_vit4", random_weights=True)  # pools its patches
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(InputError, match=r"neither timm's nor a CLIP"):
        named_tower(str(tmp_path))
