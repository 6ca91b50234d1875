"""Settings of the model: sizes and layout, which `config.json` stores, heads and objectives.

Nothing here imports torch: a command line is parsed by these classes before anything heavy is.
"""

import dataclasses
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from shards.json_files import is_number
from shards.options import positive

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

Layout = Literal["split", "two_bert", "shared_twice"]
CONFIG_VERSION = 4
MODEL_TYPE = "fusion-mre"
BERT_KIN = ("bert", "roberta", "xlm-roberta", "electra")
"""Families of text encoders that are cut in two: their layers are ours (`pretrain.model.bert`)."""


@dataclass(frozen=True, kw_only=True)
class FusionEncoderConfig:
    """Architecture: what `config.json` of a model directory stores. Default: BERT- and ViT-base."""

    vocab_size: int = 30522
    """Word pieces of the tokenizer."""
    hidden_size: int = 768
    """Width D of text tower and fusion layers."""
    num_attention_heads: int = 12
    """Heads of text tower and fusion layers."""
    intermediate_size: int = 3072
    """Feed-forward width of text tower and fusion layers."""
    text_layers: int = 6
    """BERT layers that read the text alone."""
    fusion_layers: int = 6
    """BERT layers that read text and picture together; 0 = dual encoder (a prompter)."""
    encoder_layout: Layout = "split"
    """split: one BERT cut in two (released code, pre-training). two_bert: two whole BERTs (the
    paper read literally); only `convert` makes it, of published ones. shared_twice: the text layers
    again as fusion (released MRE class)."""
    max_position_embeddings: int = 512
    """Longest text in word pieces."""
    hidden_dropout: float = 0.1
    """Dropout of text tower and fusion layers."""
    attention_dropout: float = 0.1
    """Dropout on attention weights of text tower and fusion layers."""
    layer_norm_eps: float = 1e-12
    """LayerNorm epsilon of text tower and fusion layers."""
    image_size: int = 224
    """Input pixels a side."""
    patch_size: int = 16
    """Patch pixels a side."""
    vision_hidden_size: int = 768
    """Width of the vision tower; bridged by a Linear where it differs from `hidden_size`."""
    vision_layers: int = 12
    """Layers of the vision tower."""
    vision_heads: int = 12
    """Heads of the vision tower."""
    vision_norm_eps: float = 1e-12
    """LayerNorm epsilon of the vision tower (Hugging Face ViT: 1e-12, timm: 1e-6)."""
    vision_pool: Literal["cls", "avg"] = "cls"
    """What the picture's projection reads: the class token, or the mean over patches."""
    text_pool: Literal["cls", "avg"] = "cls"
    """What the text's projection reads: the token that stands for the text (the first one; of CLIP
    and SigLIP the last), or the mean over word pieces, as most sentence-transformers do."""
    projection_size: int = 256
    """Width E of the contrastive features."""
    bridge: Literal["auto", "aligned"] = "auto"
    """How a picture's states enter the fusion layers. auto: as they are, or where the widths differ
    by a Linear. aligned: by a Linear that begins where the projections of `model.init` agree: a
    picture's state becomes the text's state that CIT compares with it."""
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """RGB mean that pixels in 0..1 are normalised with, once, on the device."""
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """RGB standard deviation, likewise."""
    text_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of a text tower that is no BERT, as in its `transformers` config.json; of BERT's kin
    also the fusion layers are such. `convert` writes it."""
    vision_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Settings of a picture tower that is no plain ViT: timm's `architecture` and `model_args`, and
    whether these take an `img_size`. `convert` writes it."""

    def __post_init__(self) -> None:
        sizes = ["hidden_size", "num_attention_heads", "image_size", "patch_size"]
        sizes += ["projection_size"] if self.vision_config else ["projection_size", "vision_heads"]
        positive("model.", **{name: getattr(self, name) for name in sizes})
        if self.image_size % self.patch_size and not self.vision_config:
            raise ValueError(
                f"model.image_size {self.image_size} is no multiple of patch_size {self.patch_size}"
            )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"model.hidden_size {self.hidden_size} is no multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if not self.vision_config and self.vision_hidden_size % self.vision_heads:
            raise ValueError(
                f"model.vision_hidden_size {self.vision_hidden_size} is no multiple of "
                f"vision_heads {self.vision_heads}"
            )
        if self.text_config and not isinstance(self.text_config.get("model_type"), str):
            raise ValueError("model.text_config names no model_type")
        if self.vision_config and not isinstance(self.vision_config.get("architecture"), str):
            raise ValueError("model.vision_config names no architecture of timm")
        if not self.is_cut and self.encoder_layout != "split":
            raise ValueError(
                f"model.encoder_layout {self.encoder_layout} needs BERT layers as text"
            )
        shared = self.encoder_layout == "shared_twice"
        if shared and self.fusion_layers not in (0, self.text_layers):
            raise ValueError("model.encoder_layout shared_twice needs fusion_layers == text_layers")

    @property
    def grid(self) -> int:
        """Patches a side; K = grid²."""
        return self.image_size // self.patch_size

    @property
    def is_cut(self) -> bool:
        """The text tower is the lower part of a BERT, or of its kin, whose upper part may be the
        fusion layers; else it is another family's whole encoder."""
        return self.text_config.get("model_type", "bert") in BERT_KIN

    def to_dict(self) -> dict[str, Any]:
        """The content of `config.json`: format version 1 where BERT and a plain ViT say it all, 2
        with towers of other families, 3 where the text is pooled by its mean, 4 where the bridge is
        more than the widths ask for."""
        values = asdict(self)
        for name in ("text_config", "vision_config"):
            if not values[name]:
                del values[name]
        version = 2 if self.text_config or self.vision_config else 1
        if self.text_pool == "cls":
            del values["text_pool"]
        else:
            version = 3
        if self.bridge == "auto":
            del values["bridge"]
        else:
            version = CONFIG_VERSION
        return {"model_type": MODEL_TYPE, "format_version": version, **values}

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "FusionEncoderConfig":
        """Inverse of `to_dict`; keys of other parts (`heads`) are theirs to read.

        Raises:
            ValueError: not a fusion-mre config, a newer format, or an unknown key.
        """
        if content.get("model_type") != MODEL_TYPE:
            raise ValueError(f"model_type is {content.get('model_type')!r}, not {MODEL_TYPE!r}")
        if content.get("format_version", 0) > CONFIG_VERSION:
            raise ValueError(
                f"format_version {content['format_version']} is newer than {CONFIG_VERSION}; "
                "update fusion-mre"
            )
        names = {field.name for field in fields(cls)}
        unknown = set(content) - names - {"model_type", "format_version", "heads"}
        if unknown:
            raise ValueError(f"unknown keys {sorted(unknown)}")
        values = {}
        for field in fields(cls):
            if field.name in content:
                values[field.name] = _checked(field.name, field.type, content[field.name])
        return cls(**values)

    @property
    def least_parameters(self) -> int:
        """A lower bound of the number of parameters, by arithmetic: nothing is built for it."""
        fusion = 0 if self.encoder_layout == "shared_twice" else self.fusion_layers
        text = self.text_layers if self.is_cut else 0
        bert = 4 * self.hidden_size**2 + 2 * self.hidden_size * self.intermediate_size
        vit = 12 * self.vision_hidden_size**2
        words = self.vocab_size + self.max_position_embeddings
        patches = self.grid**2 + 3 * self.patch_size**2
        return (
            (0 if self.text_config else words * self.hidden_size)
            + (text + fusion) * bert
            + (0 if self.vision_config else patches * self.vision_hidden_size)
            + (0 if self.vision_config else self.vision_layers * vit)
            + self.projection_size * (self.hidden_size + self.vision_hidden_size)
        )

    def bert_config(self, num_layers: int) -> "PreTrainedConfig":
        """The `transformers` configuration of `num_layers` of our layers."""
        from transformers import AutoConfig

        values: dict[str, Any] = {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": self.num_attention_heads,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "hidden_dropout_prob": self.hidden_dropout,
            "attention_probs_dropout_prob": self.attention_dropout,
            "layer_norm_eps": self.layer_norm_eps,
        }
        if self.text_config and self.is_cut:  # its table of positions begins before the first text
            values |= self.text_config
            values |= {"vocab_size": self.vocab_size, "num_hidden_layers": num_layers}
        return AutoConfig.for_model(values.pop("model_type", "bert"), **values)


@dataclass(frozen=True, kw_only=True)
class HeadsConfig:
    """Sizes of the heads that a pre-training checkpoint carries; 0 = no such head."""

    itm: bool = True
    """Image-text matching head."""
    num_entities: int = 0
    """Entity vocabulary (COE head)."""
    num_relations: int = 0
    """Relation vocabulary (CIR head)."""
    hidden_mult: int = 2
    """Hidden width of the COE and CIR heads in multiples of D; 0 = one Linear."""


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Objectives and their readings: by default the paper's; `legacy.yaml`: the code's."""

    itm: float = 1.0
    """Weight of image-text matching; 0 switches it off."""
    cit: float = 1.0
    """Weight of the contrastive image-text loss; 0 switches it off."""
    coe: float = 1.0
    """Weight of the contrastive object-entity loss; 0 = Table 1, w/o entity-object."""
    cir: float = 1.0
    """Weight of the contrastive image-relation loss; 0 = Table 1, w/o relation-image."""
    label_kind: Literal["soft", "hard"] = "soft"
    """Prompter labels as distribution, or their arg-max (Table 1, w/o soft pseudo labels)."""
    cit_negatives: Literal["matched", "all"] = "matched"
    """CIT candidates: matched pairs (Eq. 5), or all captions and pictures (released code)."""
    cit_normalize_by: Literal["matched", "batch"] = "matched"
    """CIT mean over matched pairs (Eq. 5), or over the whole batch (released code)."""
    coe_patch_weighting: Literal["binary", "coverage"] = "binary"
    """COE pools patches that show the object alike (Eq. 7), or by covered area (released code)."""
    cir_pool: Literal["cls", "patch_mean"] = "cls"
    """CIR reads the fused class token (Eq. 9), or the mean of fused patches (released code)."""
    coe_pairs: Literal["all", "matched"] = "all"
    """Pairs that COE reads: Eq. 8 averages over all."""
    itm_pool: Literal["cls", "product"] = "cls"
    """ITM reads the fused class token (Eq. 3), or the mean of the fused words times the fused state
    of the picture, value by value (after ViLBERT), which learns from fewer pairs."""
    itm_hard_negatives: bool = False
    """ITM also reads a drawn picture and a drawn caption for each matched pair (ALPRO); up to three
    times the cost of the fusion layers."""
    itm_batch_negatives: bool = False
    """ITM also reads each matched pair's picture with the caption of the next pair of the batch, so
    that picture and caption alone say nothing; up to twice the cost of the fusion layers."""
    ignore_below: float = 0.0
    """Rows whose likeliest prompt is less likely take no part in COE or CIR (ALPRO: 0.2)."""
    ignore_first_class: bool = False
    """Nor rows whose likeliest prompt is the first one: what the released code's rule computes."""
    temperature_init: float = 0.07
    """Initial temperature; learned, used within 0.001 … 0.5."""

    def __post_init__(self) -> None:
        if self.itm_hard_negatives and self.itm_batch_negatives:
            raise ValueError("loss.itm_hard_negatives or loss.itm_batch_negatives: one of them")

    @property
    def draws_negatives(self) -> bool:
        """ITM makes mismatched pairs of matched ones."""
        return self.itm_hard_negatives or self.itm_batch_negatives


def _checked(name: str, kind: Any, value: Any) -> Any:
    """A value from `config.json`, if it is of its field's kind."""
    if get_origin(kind) is Literal:
        good = value in get_args(kind)
    elif get_origin(kind) is tuple:
        good = isinstance(value, list | tuple) and len(value) == 3 and all(map(is_number, value))
        value = tuple(value) if good else value
    elif get_origin(kind) is dict:
        good = isinstance(value, dict)
    elif kind is int:
        good = type(value) is int and value >= (0 if name == "fusion_layers" else 1)
    else:
        good = is_number(value) and value >= 0
    if not good:
        raise ValueError(f"{name} cannot be {value!r}")
    return value
