"""`transformers`' Auto classes know a model directory of ours once `pretrain` is imported.

Neither torch nor `transformers` is imported for that: our configuration class is registered when
`AutoConfig` is first imported, and the classes that need torch when it first reads a directory of
ours. No code of a directory is ever run.
"""

import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import fields
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from pretrain.model.config import MODEL_TYPE

_AUTO_CONFIG = "transformers.models.auto.configuration_auto"


class _Finder(MetaPathFinder):
    """Steps in once: after `AutoConfig`'s module has run."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _AUTO_CONFIG:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_register(module: ModuleType) -> None:
                run(module)
                _register_config(module)

            spec.loader.exec_module = run_and_register  # type: ignore[method-assign]  # wrapped
        return spec


def register() -> None:
    """Now, where `AutoConfig` is imported already; else as soon as it is."""
    module = sys.modules.get(_AUTO_CONFIG)
    if module is not None and hasattr(module, "AutoConfig"):
        _register_config(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


def _register_config(module: Any) -> None:
    # Its parent class alone: more of `transformers` may be half imported at this moment.
    from transformers.configuration_utils import PreTrainedConfig

    class FusionConfig(PreTrainedConfig):
        """Content of `config.json` as attributes."""

        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
            _register_classes(cls)
            return super().from_dict(config_dict, **kwargs)

    module.AutoConfig.register(MODEL_TYPE, FusionConfig, exist_ok=True)


def _register_classes(config_class: type) -> None:
    from transformers import AutoImageProcessor, AutoModel, AutoProcessor, ViTImageProcessor

    from pretrain.processor import FusionProcessor

    AutoModel.register(config_class, _AutoEncoder, exist_ok=True)
    AutoProcessor.register(config_class, FusionProcessor, exist_ok=True)
    AutoImageProcessor.register(config_class, ViTImageProcessor, exist_ok=True)


class _AutoEncoder:
    """What `AutoModel` calls; gives a `FusionEncoder`."""

    @classmethod
    def _from_config(cls, config: Any, **options: Any) -> Any:
        """`AutoModel.from_config`: these sizes, random weights."""
        from pretrain.model.config import FusionEncoderConfig
        from pretrain.model.fusion_encoder import FusionEncoder

        content = config.to_dict()
        names = {"model_type", *(field.name for field in fields(FusionEncoderConfig))}
        sizes = {name: content[name] for name in names if name in content}
        encoder = FusionEncoder(FusionEncoderConfig.from_dict(sizes))
        return _as_asked(encoder, "from_config", options)

    @classmethod
    def from_pretrained(cls, source: str, **options: Any) -> Any:
        from pretrain.model.fusion_encoder import FusionEncoder

        ours = {key: options.pop(key) for key in ("revision", "local_files_only") if key in options}
        return _as_asked(FusionEncoder.from_pretrained(source, **ours), source, options)


def _as_asked(encoder: Any, source: str, options: dict[str, Any]) -> Any:
    """With what a caller of `AutoModel` may say of any model; anything else is refused."""
    import torch

    from shards.files import InputError

    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    for key in ("config", "trust_remote_code", "adapter_kwargs", "_from_auto", "token"):
        options.pop(key, None)
    if unknown := sorted(key for key, value in options.items() if value is not None):
        raise InputError(f"{source}: AutoModel's {', '.join(unknown)}: not known to this model")
    if dtype in (None, "auto"):
        return encoder
    return encoder.to(getattr(torch, dtype) if isinstance(dtype, str) else dtype)
