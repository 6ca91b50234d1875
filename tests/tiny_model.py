"""A tiny fusion model directory."""

from pathlib import Path

from tiny_mnre import NAMES


def write_model(directory: Path) -> Path:
    """A few thousand random weights, and a tokenizer that knows the words of `tiny_mnre`."""
    import torch

    from pretrain.checkpoint.hub import save_model_directory
    from pretrain.data.tokenizer import learn_tokenizer
    from pretrain.model.config import FusionEncoderConfig
    from pretrain.model.fusion_encoder import FusionEncoder

    text = ["RT @x : " + " and ".join(NAMES) + " tonight [ ] / E1 E2 at last #tag, on we go"] * 3
    tokenizer = learn_tokenizer(text, 120)
    torch.manual_seed(0)
    encoder = FusionEncoder(
        FusionEncoderConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            num_attention_heads=2,
            intermediate_size=64,
            text_layers=1,
            fusion_layers=1,
            image_size=16,
            patch_size=8,
            vision_hidden_size=16,
            vision_layers=1,
            vision_heads=2,
            projection_size=8,
        )
    )
    save_model_directory(
        directory,
        config=encoder.config.to_dict(),
        state=encoder.state_dict(),
        tokenizer=tokenizer,
        card="# tiny\n",
    )
    return directory
