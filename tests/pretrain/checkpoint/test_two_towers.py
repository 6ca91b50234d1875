"""A CLIP as first weights: its similarities, to the last digits, directly after conversion."""

import json

import pytest
import torch
from families import CAPTIONS
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
from pretrain.convert import main as convert

MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]


def write_clip(folder, **vision):
    """A tiny random CLIP as `transformers` writes it; the end of a text has the largest number."""
    learned = ByteLevelBPETokenizer(add_prefix_space=True)
    special = ["<pad>", "<unk>", "<s>", "<x>", "</s>"]
    learned.train_from_iterator(CAPTIONS, 320, special_tokens=special, show_progress=False)
    learned._tokenizer.post_processor = RobertaProcessing(("</s>", 4), ("<s>", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=learned._tokenizer, pad_token="<pad>", unk_token="<unk>",
        bos_token="<s>", eos_token="</s>",
    )  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 40, "max_position_embeddings": 32,
        "eos_token_id": 4, "bos_token_id": 2, "pad_token_id": 0,
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
    assert "drawn at random: fusion, bridge" in told and "left: its logit_bias" in told
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
    torch.testing.assert_close(encoder.embed_images(list(pictures)), theirs.image_embeds)
    for number, text in enumerate(texts):
        alone = encoder.embed_text([text])[0]
        torch.testing.assert_close(alone, theirs.text_embeds[number], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_similarities_are_the_clips_own(act, tmp_path, capsys):
    clip = write_clip(tmp_path / "clip", hidden_act=act)
    words = ["--from", "two-tower", "--fusion-layers", "1"]
    convert([str(tmp_path / "clip"), str(tmp_path / "out"), *words])
    told = capsys.readouterr().out
    assert "both projections" in told and "drawn at random: fusion, bridge" in told
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
    assert similarity.std() > 0.03
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
