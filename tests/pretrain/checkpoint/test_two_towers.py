"""A CLIP as first weights: its similarities, to the last digits, directly after conversion."""

import json

import pytest
import torch
from families import CAPTIONS, wordpiece
from safetensors.torch import save_file
from tiny_model import write_model
from tokenizers import ByteLevelBPETokenizer, SentencePieceUnigramTokenizer
from tokenizers.processors import RobertaProcessing, TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
)

from pretrain import FusionEncoder
from pretrain.checkpoint.initial import aligned_bridge
from pretrain.convert import main as convert

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def write_clip(folder, *, text=None, **vision):
    """A tiny random CLIP as `transformers` writes it; the end of a text has the largest number."""
    learned = ByteLevelBPETokenizer(add_prefix_space=True)
    special = ["<pad>", "<unk>", "<s>"]
    learned.train_from_iterator(CAPTIONS, 320, special_tokens=special, show_progress=False)
    learned.add_special_tokens(["</s>"])
    end = learned.token_to_id("</s>")
    learned._tokenizer.post_processor = RobertaProcessing(("</s>", end), ("<s>", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, pad_token="<pad>", unk_token="<unk>",
        bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 40, "max_position_embeddings": 32,
        "eos_token_id": end, "bos_token_id": 2, "pad_token_id": 0, **(text or {}),
    }  # fmt: skip
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 32, "patch_size": 8, **vision,
    }  # fmt: skip
    torch.manual_seed(0)
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=sizes, projection_dim=20))
    return written(clip, tokenizer, folder)


def written(model, tokenizer, folder):
    """A model with weights that are not those that layers begin with, and all that lies beside."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim():
                parameter.normal_(std=0.3)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    pixels = {"image_mean": MEAN, "image_std": STD}
    (folder / "preprocessor_config.json").write_text(json.dumps(pixels))
    return model


def write_siglip(folder, *, width=28, **vision):
    """A tiny random SigLIP. As SigLIP 2 is published, pad is number 0, which its config does not
    say, and its tokenizer keeps capitals; as of so400m, a picture's last pixels are in no patch."""
    learned = SentencePieceUnigramTokenizer()
    special = ["<pad>", "</s>", "<unk>"]
    texts = [text.lower() for text in CAPTIONS] + ["A", "B"]
    learned.train_from_iterator(
        texts, 90, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    learned._tokenizer.post_processor = TemplateProcessing("$A </s>", None, [("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, pad_token="<pad>", unk_token="<unk>",
        eos_token="</s>", padding_side="left",
    )  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 40, "max_position_embeddings": 24,
        "projection_size": width,
    }  # fmt: skip
    sizes = {
        "hidden_size": width, "num_hidden_layers": 3, "num_attention_heads": 4,
        "intermediate_size": 61, "image_size": 34, "patch_size": 8, **vision,
    }  # fmt: skip
    return written(
        SiglipModel(SiglipConfig(text_config=text, vision_config=sizes)), tokenizer, folder
    )


@pytest.mark.parametrize("act", ["gelu_pytorch_tanh", "gelu"])
def test_similarities_are_siglips_own(act, tmp_path, capsys):
    """Whatever a batch is padded to, they are of texts padded as SigLIP was trained."""
    siglip = write_siglip(tmp_path / "siglip", hidden_act=act)
    words = ["--from", "two-tower", "--fusion-layers", "1"]
    convert([str(tmp_path / "siglip"), str(tmp_path / "out"), *words])
    told = capsys.readouterr().out
    assert (
        "which the bridge begins with; drawn at random: fusion" in told
        and "left: its logit_bias" in told
    )
    assert f"--loss.temperature_init {siglip.logit_scale.neg().exp().item():.4g}" in told
    encoder = FusionEncoder.from_pretrained(tmp_path / "out")
    assert (encoder.config.projection_size, encoder.config.grid) == (28, 4)
    assert encoder.config.image_mean == tuple(MEAN)
    texts = [*CAPTIONS[:3], "Two DOGS", "a"]
    pictures = torch.randint(0, 256, (4, 3, 34, 34), dtype=torch.uint8)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "siglip", padding_side="right")
    encoded = tokenizer(
        [text.lower() for text in texts], padding="max_length", max_length=24, return_tensors="pt"
    )
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        theirs = siglip(input_ids=encoded["input_ids"], pixel_values=(pictures / 255 - mean) / std)
    expected = theirs.text_embeds @ theirs.image_embeds.T
    similarity = encoder.similarity(texts, list(pictures))
    assert similarity.std() > 0.005
    torch.testing.assert_close(similarity, expected, atol=1e-5, rtol=1e-5)
    bridge = aligned_bridge(encoder.state_dict())["bridge.weight"]
    torch.testing.assert_close(encoder.bridge.weight, bridge)
    torch.testing.assert_close(encoder.embed_images(list(pictures)), theirs.image_embeds)
    for number, text in enumerate(texts):
        alone = encoder.embed_text([text])[0]
        torch.testing.assert_close(alone, theirs.text_embeds[number], atol=1e-5, rtol=1e-5)


OPEN_CLIP = {
    "encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn", "pre_layrnorm": "ln_pre",
    "post_layernorm": "ln_post", "final_layer_norm": "ln_final",
    "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding": "conv1",
    "embeddings.token_embedding": "token_embedding", "vision_model": "visual",
    "embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip
"""Names of `transformers` -> open_clip's."""


def as_open_clip(folder, clip, *, custom_text):
    """A folder of `write_clip` in open_clip's layout: its own two files, and the tokenizer's."""
    state = {
        "visual.proj": clip.visual_projection.weight.T.contiguous(),
        "text_model.text_projection": clip.text_projection.weight.T.contiguous(),
        "logit_scale": clip.logit_scale[None] if custom_text else clip.logit_scale,
    }
    for name, tensor in clip.state_dict().items():
        if "q_proj" in name:
            thirds = [clip.state_dict()[name.replace("q_proj", f"{n}_proj")] for n in "qkv"]
            state[name.replace("q_proj.", "in_proj_")] = torch.cat(thirds)
        elif name.partition(".")[0].endswith("_model") and "k_proj" not in name:
            state |= {name: tensor} if "v_proj" not in name else {}
    prefix = "text." if custom_text else ""
    for theirs, name in OPEN_CLIP.items():
        state = {key.replace(theirs, name): state[key] for key in state}
    state = {key.replace("text_model.", prefix): tensor for key, tensor in state.items()}
    text, vision = clip.config.text_config, clip.config.vision_config
    sizes = {
        "embed_dim": 20, "quick_gelu": text.hidden_act == "quick_gelu", "custom_text": custom_text,
        "vision_cfg": {"image_size": 32, "layers": 3, "width": 32, "patch_size": 8,
                       "head_width": 8, "mlp_ratio": vision.intermediate_size / 32},
        "text_cfg": {"context_length": 32, "vocab_size": text.vocab_size, "width": 24, "heads": 2,
                     "layers": 2, "mlp_ratio": text.intermediate_size / 24, "pool_type": "argmax"},
    }  # fmt: skip
    content = {"model_cfg": sizes, "preprocess_cfg": {"mean": MEAN, "std": STD}}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (folder / name).unlink()
    if custom_text:
        save_file(state, folder / "open_clip_model.safetensors")
    else:
        torch.save(state, folder / "open_clip_pytorch_model.bin")


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("layout", ["transformers", "open_clip", "open_clip, custom_text"])
def test_similarities_are_the_clips_own(layout, act, tmp_path, capsys):
    clip = write_clip(tmp_path / "clip", text={"hidden_act": act}, hidden_act=act)
    if layout != "transformers":
        as_open_clip(tmp_path / "clip", clip, custom_text=layout.endswith("text"))
    words = ["--from", "two-tower", "--fusion-layers", "1"]
    convert([str(tmp_path / "clip"), str(tmp_path / "out"), *words])
    told = capsys.readouterr().out
    assert (
        "both projections" in told
        and "which the bridge begins with; drawn at random: fusion" in told
    )
    assert "--loss.temperature_init 0.07" in told
    encoder = FusionEncoder.from_pretrained(tmp_path / "out")
    assert (encoder.config.projection_size, encoder.config.hidden_size) == (20, 24)
    assert encoder.config.image_mean == tuple(MEAN) and encoder.config.grid == 4
    texts = [*CAPTIONS[:5], "two dogs"]
    pictures = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    encoded = encoder.processor.tokenizer(texts, padding=True, return_tensors="pt")
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        theirs = clip(
            input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"],
            pixel_values=(pictures / 255 - mean) / std,
        )  # fmt: skip
    expected = theirs.logits_per_text / clip.logit_scale.exp()
    similarity = encoder.similarity(texts, list(pictures))
    assert similarity.std() > 0.005
    torch.testing.assert_close(similarity, expected, atol=1e-5, rtol=1e-5)


def test_what_is_no_clip_or_another_kind_of_it_is_one_line(tmp_path, capsys):
    write_clip(tmp_path / "relu", hidden_act="relu")
    write_siglip(tmp_path / "headless", vision_use_head=False)
    naflex = write_model(tmp_path / "naflex")
    (naflex / "config.json").write_text(json.dumps({"model_type": "siglip2"}))
    for source, message in (
        (tmp_path / "relu", "vision tower with relu and layer_norm_eps 1e-05"),
        (tmp_path / "headless", "a pooling head (vision_use_head)"),
        (naflex, "a NaFlex SigLIP 2"),
        (write_model(tmp_path / "ours"), "reads a CLIP or SigLIP of transformers, not"),
    ):
        with pytest.raises(SystemExit) as exit_:
            convert([str(source), str(tmp_path / "out"), "--from", "two-tower"])
        assert exit_.value.code == 2 and message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"vision_cfg": {"timm_model_name": "vit_base_patch16_siglip_224"}},
         "`vision_cfg.timm_model_name` is 'vit_base_patch16_siglip_224'"),
        ({"text_cfg": {"hf_model_name": "xlm-roberta-base"}}, "`text_cfg.hf_model_name` is"),
        ({"multimodal_cfg": {"width": 8}}, "`model_cfg.multimodal_cfg` is"),
        ({"text_cfg": {"layers": 3}}, "open_clip_model.safetensors: missing text_model.encoder"),
        ({"text_cfg": {"width": "a"}}, "open_clip_config.json: "),
        ({"vision_cfg": 1}, "damaged: no `vision_cfg`"),
    ],
)  # fmt: skip
def test_open_clips_other_towers_are_one_line(changed, message, tmp_path, capsys):
    folder = tmp_path / "clip"
    as_open_clip(folder, write_clip(folder), custom_text=True)
    content = json.loads((folder / "open_clip_config.json").read_text())
    for part, value in changed.items():
        old = content["model_cfg"].get(part, {})
        content["model_cfg"][part] = old | value if isinstance(value, dict) else value
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    with pytest.raises(SystemExit) as exit_:
        convert([str(folder), str(tmp_path / "out")])
    told = capsys.readouterr().err.strip()
    assert exit_.value.code == 2 and message in told and told.count("\n") == 0
    assert not (tmp_path / "out").exists()


def test_open_clip_without_weights_or_its_tokenizer_is_one_line(tmp_path, capsys):
    folder = tmp_path / "clip"
    as_open_clip(folder, write_clip(folder), custom_text=True)
    other = wordpiece()
    for spoil, message in (
        (lambda: other.save_pretrained(folder), "a text ends with [SEP], which is not the piece"),
        (lambda: (folder / "tokenizer.json").unlink(), "no tokenizer (tokenizer.json"),
        (lambda: (folder / "open_clip_model.safetensors").unlink(),
         "neither open_clip_model.safetensors nor"),
    ):  # fmt: skip
        spoil()
        with pytest.raises(SystemExit) as exit_:
            convert([str(folder), str(tmp_path / "out")])
        assert exit_.value.code == 2 and message in capsys.readouterr().err
