"""Towers of other families, as they are: text encoders of `transformers`, backbones of timm.

Both libraries are imported where such a tower is built, not before. B: texts, L: word pieces, D:
width of the text, N: pictures, K: patches, V: width of the picture.
"""

import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pretrain.model.bert import Bert, TextStates
from pretrain.model.config import FusionEncoderConfig
from shards.files import InputError

TEXT_FAMILIES = (
    "deberta-v2", "modernbert", "mpnet", "distilbert", "clip_text_model", "siglip_text_model",
)  # fmt: skip
"""`model_type` of text encoders that are taken whole."""
READS_LAST = ("clip_text_model", "siglip_text_model")
"""Those whose last word piece stands for the text, not the first one."""
MOST_LAYERS = 1000
_NAME = re.compile(r"\w+(\.\w+)?")
"""Of an architecture in timm's registry; with `hf-hub:` or `local-dir:` it would be fetched."""
_LOADING = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"}
)
"""Arguments with which timm fetches or opens files that no checksum covers."""
_NOT_SETTINGS = ("architectures", "transformers_version", "dtype", "torch_dtype", "_name_or_path")


@contextmanager
def possible(settings: str) -> Iterator[None]:
    """What `transformers`, timm and torch raise of settings that no model can have becomes an
    InputError about `settings`."""
    from huggingface_hub.errors import StrictDataclassError

    try:
        yield
    except InputError:
        raise
    except (
        AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError,
        ZeroDivisionError, StrictDataclassError,
    ) as error:  # fmt: skip
        raise InputError(f"{settings}: {' '.join(str(error).split())}") from error


def family_config(content: dict[str, Any]) -> Any:
    """The configuration object of a text encoder, from its `config.json` or `text_config`.

    Raises:
        ValueError: a family that is not known here.
    """
    from transformers import AutoConfig

    family = content.get("model_type")
    if family not in TEXT_FAMILIES:
        raise ValueError(f"text encoders of model_type {family!r} are not known")
    settings = {key: content[key] for key in content if key not in (*_NOT_SETTINGS, "model_type")}
    return AutoConfig.for_model(str(family), **settings)


def model_class(config: Any) -> Any:
    """The class of `transformers` that a configuration is of: the encoder without heads."""
    import transformers

    if config.model_type == "siglip_text_model":  # AutoModel does not know it
        return transformers.SiglipTextModel
    return transformers.AutoModel._model_mapping[type(config)]


def settings_of(config: Any) -> dict[str, Any]:
    """What `family_config` needs to make this configuration again."""
    content = config.to_diff_dict()
    return {key: content[key] for key in sorted(content) if key not in _NOT_SETTINGS}


def last_place(mask: Tensor) -> Tensor:
    """(B, L) mask -> (B,) place of the last word piece that it shows."""
    return (mask.bool() * torch.arange(mask.shape[1], device=mask.device)).argmax(dim=1)


def last_state(states: Tensor, mask: Tensor | None) -> Tensor:
    """(B, L, D) -> (B, D) of that place; without a mask of the last one."""
    if mask is None:
        return states[:, -1]
    return states[torch.arange(len(mask), device=mask.device), last_place(mask)]


class LibraryText(nn.Module):
    """A text encoder of `transformers`, called as `pretrain.model.bert.Bert` is."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    @classmethod
    def of(cls, config: Any) -> "LibraryText":
        """With random weights. config: as `family_config` makes it."""
        return cls(model_class(config)(config))

    @property
    def config(self) -> Any:
        """The family's own configuration."""
        return self.net.config

    @property
    def longest_text(self) -> int:
        """Most word pieces that have a position."""
        before = self.config.pad_token_id + 1 if self.config.model_type == "mpnet" else 0
        return self.config.max_position_embeddings - before

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        inputs_embeds: Tensor | None = None,
        output_hidden_states: bool = False,
    ) -> TextStates:
        """(B, L), or but for READS_LAST (B, L, D) in the place of words -> (B, L, D)."""
        mask = None if attention_mask is None else attention_mask.long()
        if self.config.model_type == "siglip_text_model" and input_ids is not None:
            return self._padded(input_ids, mask, output_hidden_states)
        given = {"input_ids": input_ids, "attention_mask": mask}
        if inputs_embeds is not None:
            given["inputs_embeds"] = inputs_embeds
        states = self.net(**given, output_hidden_states=output_hidden_states)
        return TextStates(states.last_hidden_state, getattr(states, "hidden_states", None))

    def _padded(self, input_ids: Tensor, mask: Tensor | None, hidden: bool) -> TextStates:
        """SigLIP's: it was trained on texts padded to its last position with nothing masked, and
        reads a text there. That state stands at the last word piece shown (of its tokenizer `</s>`)
        whatever a batch is padded to."""
        length, pad = input_ids.shape[1], self.config.pad_token_id
        shown = torch.ones_like(input_ids) if mask is None else mask
        ids = input_ids.masked_fill(shown == 0, pad)
        ids = F.pad(ids, (0, max(0, self.longest_text - length)), value=pad)
        states = self.net(input_ids=ids, output_hidden_states=hidden)
        whole, layers = states.last_hidden_state, getattr(states, "hidden_states", None)
        is_last = F.one_hot(last_place(shown), length).bool()[..., None]
        read = torch.where(is_last, whole[:, -1:], whole[:, :length])
        return TextStates(read, layers and tuple(layer[:, :length] for layer in layers))

    def get_input_embeddings(self) -> nn.Embedding:
        """The word table."""
        return self.net.get_input_embeddings()

    def resize_token_embeddings(self, num_tokens: int) -> None:
        """Grow or cut the word table; new rows are drawn like the first ones."""
        self.net.resize_token_embeddings(num_tokens, mean_resizing=False)

    def checkpoint_activations(self) -> None:
        """While training, keep the inputs of layers alone and compute the rest again backwards.

        Raises:
            InputError: the family cannot.
        """
        if not self.net.supports_gradient_checkpointing:
            raise InputError(
                f"engine.activation_checkpointing: a {self.config.model_type} cannot compute its "
                "layers again; leave it false"
            )
        self.net.gradient_checkpointing_enable({"use_reentrant": False})

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write what `transformers.AutoModel` reads."""
        self.net.save_pretrained(directory)


class LibraryVision(nn.Module):
    """A backbone of timm: normalised pictures -> its own pooled state, and its patches.

    Of a convolutional net the places of the last feature map are the patches. BatchNorm stands
    still: its statistics are those of the first weights.
    """

    def __init__(self, net: Any) -> None:
        from timm.layers import freeze_batch_norm_2d

        super().__init__()
        self.net = freeze_batch_norm_2d(net)

    @classmethod
    def of(cls, described: dict[str, Any], image_size: int) -> "LibraryVision":
        """With random weights.

        Args:
            described: `architecture` and `model_args`, as in timm's own directories, and `sized`:
                the net has positions for one size of pictures.

        Raises:
            ValueError: timm knows no such architecture, or refuses its arguments.
        """
        from timm.models import create_model

        arguments = dict(described.get("model_args", {}))
        if not _NAME.fullmatch(described["architecture"]) or _LOADING & arguments.keys():
            raise ValueError(
                f"architecture {described['architecture']} with {sorted(arguments)}: must be a "
                "name of timm's registry, and may load nothing"
            )
        if described.get("sized"):
            arguments["img_size"] = image_size
        try:
            net = create_model(described["architecture"], num_classes=0, **arguments)
        except (RuntimeError, TypeError, ValueError, AssertionError, KeyError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"timm makes no {described['architecture']}: {reason}") from error
        return cls(net)

    @property
    def width(self) -> int:
        """V"""
        return self.net.num_features

    def forward(self, pixel_values: Tensor, kept_patches: Tensor | None = None) -> Tensor:
        """(N, 3, S, S) -> (N, 1+K, V): the pooled state, then the patches row by row.

        Raises:
            InputError: only some patches are to be looked at, which the plain ViT alone can do.
        """
        if kept_patches is not None:
            raise InputError(
                f"data.keep_patches: a {type(self.net).__name__} looks at whole pictures: leave it "
                "at 1"
            )
        states = self.net.forward_features(pixel_values)
        if states.dim() == 4:
            channels_last = getattr(self.net, "output_fmt", "NCHW") == "NHWC"
            patches = states.flatten(1, 2) if channels_last else states.flatten(2).transpose(1, 2)
        else:
            patches = states[:, getattr(self.net, "num_prefix_tokens", 0) :]
        pooled = self.net.forward_head(states, pre_logits=True)
        if pooled.shape[-1] != self.width:  # a classifier's own layer has widened it
            pooled = patches.mean(dim=1)
        return torch.cat([pooled[:, None], patches], dim=1)

    def checkpoint_activations(self) -> None:
        """While training, keep the inputs of layers alone and compute the rest again backwards."""
        self.net.set_grad_checkpointing()


def library_parameters(config: FusionEncoderConfig) -> int:
    """How many the parts have that `text_config` and `vision_config` describe: all of a library's
    tower, the tables of BERT's kin. Nothing is allocated for it.

    Raises:
        InputError: settings that cannot be, or so many layers that naming them takes all memory.
    """
    parts: list[nn.Module] = []
    arguments = config.vision_config.get("model_args", {})
    for settings, described in ("text_config", config.text_config), ("vision_config", arguments):
        with possible(settings):
            if (layers := _layers(described)) > MOST_LAYERS:
                raise ValueError(f"{layers:,} layers")
    with torch.device("meta"):
        if config.text_config:
            with possible("text_config"):
                if config.is_cut:
                    parts.append(Bert(config.bert_config(0)))
                else:
                    parts.append(LibraryText.of(family_config(config.text_config)))
        if config.vision_config:
            with possible("vision_config"):
                parts.append(LibraryVision.of(config.vision_config, config.image_size))
    return sum(parameter.numel() for part in parts for parameter in part.parameters())


def _layers(settings: dict[str, Any]) -> int:
    """The sum of all numbers that some families call layers or depth."""
    numbers = [value for name, value in settings.items() if "layers" in name or "depth" in name]
    return sum(int(n) for one in numbers for n in (one if isinstance(one, list) else [one]))


@torch.no_grad()
def grid_of(vision: LibraryVision, image_size: int) -> tuple[int, int]:
    """Patches a side, pixels a side of each. Raises: ValueError: they are no square."""
    training = vision.training
    states = vision.eval()(torch.zeros(1, 3, image_size, image_size))
    vision.train(training)
    patches = states.shape[1] - 1
    side = math.isqrt(patches)
    patch = image_size // side
    if image_size % side:  # a ViT leaves the rest of 384 pixels unread: 27 patches of 14
        patch = vision.net.patch_embed.patch_size[0] if hasattr(vision.net, "patch_embed") else 0
    if side**2 != patches or not patch or image_size // patch != side:
        raise ValueError(
            f"{patches} patches of a picture of {image_size} pixels are no square grid"
        )
    return side, patch
