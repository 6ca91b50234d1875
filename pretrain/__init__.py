"""The fusion encoder: model, objectives, distributed training and checkpoints."""

from typing import TYPE_CHECKING, Any

from pretrain.checkpoint import auto_classes
from shards.threads import set_threads

if TYPE_CHECKING:
    from pretrain.model.fusion_encoder import FusionEncoder as FusionEncoder

set_threads()
auto_classes.register()


def __getattr__(name: str) -> Any:  # imports torch, or reads metadata, only where asked for
    if name == "FusionEncoder":
        from pretrain.model.fusion_encoder import FusionEncoder

        return FusionEncoder
    if name == "__version__":
        from shards.command import product_version

        return product_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
