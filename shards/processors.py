"""Tokenizers and processors of `transformers`, as their files say, and where the hub's cache keeps
them."""

import json
from pathlib import Path
from typing import Any

from shards.json_files import read_json


def load_processor(source: str | Path, **options: Any) -> Any:
    """The `AutoProcessor` of a folder or hub id, whose tokenizer splits texts as tokenizer.json
    says; no code of the folder is run. Errors as of `from_pretrained`."""
    from transformers import AutoProcessor

    # Left unsaid, `transformers` asks standard input whether to run a folder's code.
    processor = AutoProcessor.from_pretrained(source, trust_remote_code=False, **options)
    tokenizer = getattr(processor, "tokenizer", None)
    if tokenizer is not None:
        processor.tokenizer = as_filed(tokenizer, snapshot(source))
    return processor


def snapshot(source: str | Path, **options: Any) -> Path:
    """A folder itself; of a hub id, where the cache has the newest commit within reach.

    Args:
        options: of `cached_file`, such as local_files_only.

    Raises:
        OSError: neither.
    """
    if Path(source).is_dir():
        return Path(source)
    from transformers.utils import cached_file

    return Path(str(cached_file(source, "config.json", **options))).parent


def commit_of(source: str | Path, **options: Any) -> str | None:
    """Of a hub id, or folder of the hub's cache; None: of another folder. As `snapshot`."""
    folder = snapshot(source, **options)
    return folder.name if folder.parent.name == "snapshots" else None


def as_filed(tokenizer: Any, directory: Path) -> Any:
    """A tokenizer that splits texts as tokenizer.json says.

    Of a class that settings name, `transformers` takes the file's vocabulary and builds the rest
    anew (findings/transformers_rebuilds_tokenizer.sh); where that differs, the generic class reads
    the whole file; so it does of a class that has no fast form (SigLIP's). `do_lower_case` in
    tokenizer_config.json overrides BERT's normalizer, as there.
    """
    from tokenizers import Tokenizer
    from tokenizers.normalizers import BertNormalizer
    from transformers import PreTrainedTokenizerFast

    file, config = directory / "tokenizer.json", directory / "tokenizer_config.json"
    if not file.is_file():
        return tokenizer
    options = {
        "local_files_only": True, "model_input_names": tokenizer.model_input_names,
        "padding_side": tokenizer.padding_side, **tokenizer.special_tokens_map,
    }  # fmt: skip
    if not tokenizer.is_fast:
        return PreTrainedTokenizerFast.from_pretrained(directory, **options)
    filed, built = Tokenizer.from_file(str(file)), tokenizer.backend_tokenizer
    normalizers = filed.normalizer, built.normalizer
    settled = config.is_file() and "do_lower_case" in read_json(config)
    settled = settled and all(isinstance(part, BertNormalizer) for part in normalizers)
    if _alike(filed.pre_tokenizer, built.pre_tokenizer) and (settled or _alike(*normalizers)):
        return tokenizer
    generic = PreTrainedTokenizerFast.from_pretrained(directory, **options)
    if settled:
        generic.backend_tokenizer.normalizer = built.normalizer
    if filed.post_processor is None:  # else no text would have its [CLS] and [SEP]
        generic.backend_tokenizer.post_processor = built.post_processor
    return generic


def _alike(part: Any, other: Any) -> bool:
    """Both absent, or of the same kind and options."""
    if part is None or other is None:
        return part is other
    return json.loads(part.__getstate__()) == json.loads(other.__getstate__())
