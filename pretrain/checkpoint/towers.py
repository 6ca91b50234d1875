"""A published BERT and a published ViT -> a fusion encoder; positions for another picture size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models import create_model
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pretrain.checkpoint.authors import Imported, cut_after
from pretrain.checkpoint.strict import CONFIG_NAME, WEIGHTS_NAME, check_fits, load_strictly
from pretrain.checkpoint.tables import bert_table, to_ours
from pretrain.model.bert import Bert
from pretrain.model.config import Layout
from pretrain.model.fusion_encoder import FusionEncoder, FusionEncoderConfig
from shards.files import InputError, write_json


def read_vit(source: str) -> VisionTransformer:
    """A timm model name (weights from hub or cache), or a directory in timm's hub layout."""
    name = f"local-dir:{source}" if Path(source).is_dir() else source
    try:
        vit = create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # timm passes on whatever hub, file and registry raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"--vision {source}: timm cannot load it ({reason})") from error
    if type(vit) is not VisionTransformer:
        raise InputError(f"--vision {source}: a {type(vit).__name__}, not a plain ViT")
    return vit.eval()


def from_towers(
    bert: Bert,
    vit: VisionTransformer,
    *,
    text_layers: int | None = None,
    layout: Layout = "split",
    seed: int = 0,
) -> Imported:
    """A fusion encoder whose text and fusion layers are those of a BERT.

    Args:
        text_layers: layers that read the text alone where the layout is `split`, None = half;
            in the other layouts all do.
        seed: of what neither tower has: projections, and the bridge where the widths differ.
    """
    architecture = bert_architecture(bert, text_layers=text_layers, layout=layout)
    state, whole = bert.state_dict(), bert.config.num_hidden_layers
    table = bert_table("", whole, architecture.text_layers)
    if layout == "two_bert":
        again = bert_table("", whole, 0)
        table |= {ours: names for ours, names in again.items() if ours.startswith("fusion.")}
    text = {name: tensor.clone() for name, tensor in to_ours(state, table).items()}
    imported = add_vision(Imported(architecture.to_dict(), text), vit, seed=seed)
    _check_bert(encoder_of(imported), bert)
    return imported


def bert_architecture(
    bert: Bert, *, text_layers: int | None, layout: Layout
) -> FusionEncoderConfig:
    """Our description of a BERT."""
    config = bert.config
    whole = config.num_hidden_layers
    text_layers = cut_after(whole, text_layers) if layout == "split" else whole
    return FusionEncoderConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
        text_layers=text_layers,
        fusion_layers=whole - text_layers if layout == "split" else whole,
        encoder_layout=layout,
        max_position_embeddings=config.max_position_embeddings,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        layer_norm_eps=config.layer_norm_eps,
    )


def add_vision(imported: Imported, vit: VisionTransformer, *, seed: int = 0) -> Imported:
    """Give a text side a picture tower; what neither has is drawn at random and noted.

    A `vision_proj` of the text side's checkpoint is kept where its width fits.
    """
    config = imported.config | vit_architecture(vit)
    torch.manual_seed(seed)
    encoder = FusionEncoder(FusionEncoderConfig.from_dict(config)).eval()
    fresh = encoder.state_dict()
    vision = {f"vision.{k}": v for k, v in vit.state_dict().items() if not k.startswith("head.")}
    expected = {name: tensor for name, tensor in fresh.items() if name.startswith("vision.")}
    check_fits(expected, vision, "the ViT is of another kind than ours")
    text = {
        name: tensor
        for name, tensor in imported.state.items()
        if not name.startswith("vision_proj.") or tensor.shape == fresh[name].shape
    }
    drawn = sorted(set(fresh) - set(vision) - set(text))
    notes = [*imported.notes, *([f"drawn at random: {', '.join(drawn)}"] if drawn else [])]
    joined = Imported(config, fresh | text | vision, notes)
    _check_vit(encoder_of(joined), vit)
    return joined


def encoder_of(imported: Imported) -> FusionEncoder:
    """The encoder alone, in eval mode, heads left aside."""
    encoder = FusionEncoder(FusionEncoderConfig.from_dict(imported.config))
    state = {k: v for k, v in imported.state.items() if not k.startswith("heads.")}
    load_strictly(encoder, state, "encoder")
    return encoder.eval()


def vit_architecture(vit: VisionTransformer) -> dict[str, Any]:
    """The fields of `FusionEncoderConfig` that a timm ViT decides."""
    height, width = vit.patch_embed.img_size
    if height != width:
        raise InputError(
            f"a ViT for pictures of {height}x{width} pixels; only squares are supported"
        )
    block: Any = vit.blocks[0]  # timm declares no attributes of its modules
    preset: Any = vit.pretrained_cfg
    return {
        "image_size": height,
        "patch_size": vit.patch_embed.patch_size[0],
        "vision_hidden_size": vit.embed_dim,
        "vision_layers": len(vit.blocks),
        "vision_heads": block.attn.num_heads,
        "vision_norm_eps": getattr(vit.norm, "eps", 1e-6),
        "image_mean": tuple(preset["mean"]),
        "image_std": tuple(preset["std"]),
    }


def resize_positions(imported: Imported, image_size: int) -> Imported:
    """The same model for pictures of `image_size` pixels a side (timm's own interpolation)."""
    old, patch = imported.config["image_size"], imported.config["patch_size"]
    if image_size == old:
        return imported
    if image_size % patch or image_size < patch:
        raise InputError(f"--image-size {image_size} is no multiple of the patch size {patch}")
    grid = image_size // patch
    positions = resample_abs_pos_embed(
        imported.state["vision.pos_embed"], new_size=[grid, grid], num_prefix_tokens=1
    )
    note = f"vision.pos_embed resized from {old // patch}x{old // patch} to {grid}x{grid} patches"
    return replace(
        imported,
        config=imported.config | {"image_size": image_size},
        state=imported.state | {"vision.pos_embed": positions.contiguous()},
        notes=[*imported.notes, note],
    )


def write_timm(folder: Path, imported: Imported) -> None:
    """The picture tower as `timm.create_model("local-dir:…", pretrained=True)` reads it.

    timm has no place for the LayerNorm epsilon: its 1e-6 is used there.
    """
    config = imported.config
    size = config["image_size"]
    content = {
        "architecture": "vit_base_patch16_224",
        "num_classes": 0,
        "model_args": {
            "img_size": size,
            "patch_size": config["patch_size"],
            "embed_dim": config["vision_hidden_size"],
            "depth": config["vision_layers"],
            "num_heads": config["vision_heads"],
        },
        "pretrained_cfg": {
            "input_size": [3, size, size],
            "mean": list(config["image_mean"]),
            "std": list(config["image_std"]),
            "num_classes": 0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    write_json(folder / CONFIG_NAME, content)
    state = {
        name.removeprefix("vision."): tensor.contiguous()
        for name, tensor in imported.state.items()
        if name.startswith("vision.")
    }
    save_file(state, folder / WEIGHTS_NAME, metadata={"format": "pt"})


# Equal names and shapes do not show an activation or a norm that differs; outputs do.


@torch.inference_mode()
def _check_vit(encoder: FusionEncoder, vit: VisionTransformer) -> None:
    size = encoder.config.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    _agree("the ViT", encoder.encode_image(pixels, normalized=True), vit.forward_features(pixels))


@torch.inference_mode()
def _check_bert(encoder: FusionEncoder, bert: Bert) -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, encoder.config.vocab_size, (1, 8), generator=random)
    mask = torch.ones_like(ids)
    text = encoder.encode_text(ids, mask)
    if encoder.config.encoder_layout == "split" and encoder.config.fusion_layers:
        text = encoder.fuse(text, mask, None)
    _agree("the BERT", text, bert(input_ids=ids, attention_mask=mask).last_hidden_state)


def _agree(name: str, ours: Tensor, theirs: Tensor) -> None:
    difference = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("inf")
    if not difference <= 1e-4 * max(1.0, theirs.abs().max().item()):
        raise InputError(
            f"{name} has our tensors but computes something else (largest difference "
            f"{difference:.2g}): its activation, norms or attention are of another kind"
        )
