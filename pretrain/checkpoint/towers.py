"""A published text encoder and a picture backbone -> a fusion encoder; other picture sizes."""

from dataclasses import replace
from typing import Any, cast

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor
from transformers import BertConfig

from pretrain.checkpoint.authors import Imported, cut_after
from pretrain.checkpoint.backbones import Backbone
from pretrain.checkpoint.strict import check_fits, load_strictly
from pretrain.checkpoint.tables import bert_table, to_ours
from pretrain.model.bert import Bert
from pretrain.model.config import CONFIG_VERSION, FusionEncoderConfig, Layout
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.library import LibraryText, LibraryVision, settings_of
from shards.files import InputError


def from_towers(
    bert: Bert | LibraryText,
    vision: Backbone,
    *,
    text_layers: int | None = None,
    layout: Layout = "split",
    fusion_layers: int | None = None,
    seed: int = 0,
    projection_size: int = 256,
) -> Imported:
    """A fusion encoder whose text and fusion layers are those of a BERT or of its kin; of another
    family the text tower is the whole encoder, and fusion layers are new.

    Args:
        fusion_layers: of another family, None = 6.
        text_layers: layers that read the text alone where the layout is `split`, None = half;
            in the other layouts all do.
        seed: of what neither tower has: projections, and the bridge where the widths differ.
        projection_size: of another family's projections, E.
    """
    if isinstance(bert, LibraryText):
        if layout != "split" or text_layers is not None:
            raise InputError(
                f"a {bert.config.model_type} is taken whole: --encoder-layout and --text-layers "
                "are of BERT, RoBERTa, XLM-R and ELECTRA"
            )
        whole = library_architecture(bert, 6 if fusion_layers is None else fusion_layers)
        whole = replace(whole, projection_size=projection_size)
        theirs = {f"text.{name}": tensor for name, tensor in bert.state_dict().items()}
        imported = add_vision(Imported(whole.to_dict(), theirs), vision, seed=seed)
        _check_text(encoder_of(imported), bert)
        return imported
    if fusion_layers is not None:
        raise InputError("--fusion-layers: this encoder's own upper layers are; see --text-layers")
    architecture = bert_architecture(bert, text_layers=text_layers, layout=layout)
    state, whole = bert.state_dict(), bert.config.num_hidden_layers
    project = {n: state.pop(n) for n in list(state) if n.startswith("embeddings_project.")}
    text = to_ours(state, bert_table("", whole, architecture.text_layers))
    if layout == "two_bert":  # every layer once more
        again = to_ours(state, bert_table("", whole, 0))
        text |= {name: again[name] for name in again if name.startswith("fusion.")}
    text = {name: tensor.clone() for name, tensor in text.items()}
    text |= {f"text.{name}": tensor.clone() for name, tensor in project.items()}  # ELECTRA's
    imported = add_vision(Imported(architecture.to_dict(), text), vision, seed=seed)
    _check_text(encoder_of(imported), bert)
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
        max_position_embeddings=bert.longest_text,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        layer_norm_eps=config.layer_norm_eps,
        text_config=_kin_settings(config),
    )


_OF_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps",
)  # fmt: skip
"""Settings that `FusionEncoderConfig` holds under names of its own."""
_OF_BERTS_KIN = (
    "hidden_act", "type_vocab_size", "pad_token_id", "embedding_size", "max_position_embeddings",
    "initializer_range",
)  # fmt: skip
"""Further settings that change what our layers compute or draw."""


def _kin_settings(config: Any) -> dict[str, Any]:
    """`text_config` of BERT's kin; {} for a BERT as the paper has it."""
    names = [name for name in _OF_BERTS_KIN if hasattr(config, name)]
    settings = {"model_type": config.model_type, **{n: getattr(config, n) for n in names}}
    plain = BertConfig(max_position_embeddings=config.max_position_embeddings)
    is_plain = config.model_type == "bert" and all(
        getattr(plain, name) == settings[name] for name in names
    )
    return {} if is_plain else settings


def library_architecture(text: LibraryText, fusion_layers: int) -> FusionEncoderConfig:
    """Our description of a text encoder of another family; fusion layers are as wide as it is."""
    config = text.config
    width = config.hidden_size
    return FusionEncoderConfig(
        vocab_size=text.get_input_embeddings().num_embeddings,
        hidden_size=width,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=4 * width,
        text_layers=config.num_hidden_layers,
        fusion_layers=fusion_layers,
        max_position_embeddings=text.longest_text,
        text_config=settings_of(config),
    )


def add_vision(imported: Imported, backbone: Backbone, *, seed: int = 0) -> Imported:
    """Give a text side a picture tower; what neither has is drawn at random and noted.

    A `vision_proj` of the text side's checkpoint is kept where its width fits.
    """
    declared = FusionEncoderConfig.from_dict(imported.config | backbone.config | {
        "format_version": CONFIG_VERSION
    })  # fmt: skip
    heads = {key: imported.config[key] for key in ("heads",) if key in imported.config}
    config = declared.to_dict() | heads
    torch.manual_seed(seed)
    fresh = FusionEncoder(declared).eval().state_dict()
    vision = backbone.state()
    expected = {name: tensor for name, tensor in fresh.items() if name.startswith("vision.")}
    check_fits(expected, vision, "the picture tower is of another kind than described")
    text = {
        name: tensor
        for name, tensor in imported.state.items()
        if not name.startswith("vision_proj.") or tensor.shape == fresh[name].shape
    }
    drawn = sorted(set(fresh) - set(vision) - set(text))
    new = [name for name in drawn if name.startswith("fusion.")]
    named = [*([f"{len(new)} tensors of fusion layers"] if new else []), *(set(drawn) - set(new))]
    said = f"drawn at random: {', '.join(sorted(named))}"
    said += f" (projection_size {declared.projection_size})" * ("text_proj.weight" in drawn)
    notes = [*imported.notes, *([said] if drawn else [])]
    joined = Imported(config, fresh | text | vision, notes)
    _check_vision(encoder_of(joined), backbone.net)
    return joined


def encoder_of(imported: Imported) -> FusionEncoder:
    """The encoder alone, in eval mode, heads left aside."""
    encoder = FusionEncoder(FusionEncoderConfig.from_dict(imported.config))
    state = {k: v for k, v in imported.state.items() if not k.startswith("heads.")}
    load_strictly(encoder, state, "encoder")
    return encoder.eval()


def resize_positions(imported: Imported, image_size: int) -> Imported:
    """The same model for pictures of `image_size` pixels a side (timm's own interpolation)."""
    old, patch = imported.config["image_size"], imported.config["patch_size"]
    if image_size == old:
        return imported
    if imported.config.get("vision_config"):
        return _resize_library(imported, image_size)
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


def _resize_library(imported: Imported, image_size: int) -> Imported:
    """The same of a backbone of timm, which resizes itself."""
    old, patch = imported.config["image_size"], imported.config["patch_size"]
    if image_size % patch or image_size < patch:
        raise InputError(f"--image-size {image_size} is no multiple of the patch size {patch}")
    encoder = encoder_of(imported)
    if imported.config["vision_config"]["sized"]:
        cast(LibraryVision, encoder.vision).net.set_input_size(img_size=image_size)
    state = {f"vision.{name}": tensor for name, tensor in encoder.vision.state_dict().items()}
    return replace(
        imported,
        config=imported.config | {"image_size": image_size},
        state=imported.state | {name: tensor.contiguous() for name, tensor in state.items()},
        notes=[*imported.notes, f"picture tower resized from {old} to {image_size} pixels"],
    )


# Equal names and shapes do not show an activation or a norm that differs; outputs do.


@torch.inference_mode()
def _check_vision(encoder: FusionEncoder, net: Any) -> None:
    size = encoder.config.image_size
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    states, theirs = encoder.encode_image(pixels, normalized=True), net.forward_features(pixels)
    if encoder.config.vision_config:  # first its own pooled state, then patches
        states = states[:, 1:]
        maps = theirs.dim() == 4
        theirs = theirs.flatten(2).transpose(1, 2) if maps else theirs[:, -states.shape[1] :]
    _agree("the picture tower", states, theirs)


@torch.inference_mode()
def _check_text(encoder: FusionEncoder, bert: Bert | LibraryText) -> None:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, encoder.config.vocab_size, (1, 8), generator=random)
    mask = torch.ones_like(ids)
    text = encoder.encode_text(ids, mask)
    config = encoder.config
    if config.is_cut and config.encoder_layout == "split" and config.fusion_layers:
        text = encoder.fuse(text, mask, None)
    _agree("the text encoder", text, bert(ids, mask).last_hidden_state)


def _agree(name: str, ours: Tensor, theirs: Tensor) -> None:
    difference = (ours - theirs).abs().max().item() if ours.shape == theirs.shape else float("inf")
    if not difference <= 1e-4 * max(1.0, theirs.abs().max().item()):
        raise InputError(
            f"{name} has our tensors but computes something else (largest difference "
            f"{difference:.2g}): its activation, norms or attention are of another kind"
        )
