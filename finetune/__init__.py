"""Relation extraction and entity recognition: every method on every task, judged one way."""

from typing import TYPE_CHECKING, Any

from shards.threads import set_threads

if TYPE_CHECKING:
    from finetune.predict.extractor import Extractor as Extractor

set_threads()


def __getattr__(name: str) -> Any:  # imports torch, or reads metadata, only where asked for
    if name == "Extractor":
        from finetune.predict.extractor import Extractor

        return Extractor
    if name == "__version__":
        from shards.command import product_version

        return product_version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
