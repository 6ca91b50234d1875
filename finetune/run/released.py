"""Fine-tuned checkpoints of the authors' repositories -> model directories of finished runs.

`python -m pretrain convert best_model.pth OUT/model --from hvpnet --labels ours_rel2id.json`; then
`python -m finetune evaluate OUT --data MNRE` (CAMIM read with other captions than MiniCPM's:
`--captions NAME`). `pretrain` finds these through entry points, because
nothing there imports this package. Each method's table of names lies beside it.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune import registry
from finetune.methods.base import Source
from finetune.methods.camim import names as camim_names
from finetune.methods.camim.caption_reading import CAPTION_LENGTH
from finetune.methods.hvpnet import names as hvpnet_names
from finetune.methods.mkgformer import names as mkgformer_names
from finetune.methods.tmr import names as tmr_names
from finetune.methods.tmr.released import LENGTHS
from finetune.run.checkpoint import save_method
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, read_relations
from finetune.tasks.twitter import bio_labels
from pretrain.checkpoint.authors import unwrap
from pretrain.checkpoint.card import conversion_card
from pretrain.checkpoint.convert_config import ConvertConfig
from pretrain.checkpoint.remote import resolve
from pretrain.checkpoint.strict import check_values, load_strictly
from pretrain.checkpoint.untrusted import load_pickle
from shards.files import InputError

Rename = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]


def convert(
    name: str,
    rename: Rename,
    settings: Mapping[str, Any],
    source: Path,
    options: ConvertConfig,
    for_entities: Mapping[str, Any] | None = None,
    for_relations: Mapping[str, Any] | None = None,
    longest: int = 80,
    captions: str | None = None,
) -> str:
    """Write `options.out`; returns a line about it.

    Args:
        name: of the method. rename: their names -> ours. settings: of the method, as released.
        for_entities, for_relations: settings beside these in such a task.
        longest: text in word pieces. captions: the captioner whose texts it read.
        options: `out`; `tokenizer`, the directory or id of the BERT they began with; `labels`,
            `ours_rel2id.json` of the relations, not needed for entities.

    Raises:
        InputError: not such a checkpoint, or tensors that do not fit.
    """
    content = load_pickle(source)
    if isinstance(content, dict) and "state_dict" in content:
        content = content["state_dict"]
    theirs = unwrap(content)
    try:
        state = rename(theirs)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    floats = {key: tensor for key, tensor in state.items() if tensor.is_floating_point()}
    check_values(floats, str(source))  # the rest are BatchNorm's counters
    task = task_of(theirs, options.labels)
    method_class = registry.load("methods", name)
    more = for_entities if task.kind == "entities" else for_relations
    config = method_class.Config(**settings, **(more or {}))
    # Every tensor is theirs: of the BERT that they began with, sizes and tokenizer are enough.
    start = Source(str(resolve(options.tokenizer)), random_weights=True)
    method, tokenizer = method_class.build(config, task, start)
    untrained = {k: v for k, v in method.state_dict().items() if k.endswith("num_batches_tracked")}
    load_strictly(method, untrained | state, str(source))
    save_method(
        Path(options.out),
        method,
        tokenizer,
        name=name,
        config=config,
        task=task,
        inputs={
            "images": "required",
            "max_length": min(longest, method.longest_text or longest),
            "regions": "community",
            "captions": captions,
            "max_caption_length": CAPTION_LENGTH,
        },
        card=conversion_card({"source": f"`{source}` ({name}, as released)"}, []),
    )
    return f"{len(state)} tensors of {len(theirs)}, {name} on {task.name}"


def task_of(state: Mapping[str, Tensor], labels: str | None) -> TaskInfo:
    """Entities where there is a CRF, else the relations that `labels` names."""
    if any(key.startswith("crf.") for key in state):
        return TaskInfo("twitter2017", "entities", bio_labels())
    if labels is None:
        raise InputError("--labels FILE: say which relations its outputs are (ours_rel2id.json)")
    return TaskInfo("mnre", "relation", tuple(read_relations(Path(labels))), MARKERS)


hvpnet = partial(convert, "hvpnet", hvpnet_names.convert_state, {"profile": "legacy"})
tmr = partial(
    convert,
    "tmr",
    tmr_names.convert_state,
    {"profile": "legacy"},
    for_entities=tmr_names.ENTITY_SETTINGS,
    for_relations=tmr_names.RELATION_SETTINGS,
    longest=LENGTHS["relation"],
)
camim = partial(
    convert,
    "camim_tmr",
    camim_names.convert_state,
    {"profile": "legacy"},
    for_relations=tmr_names.RELATION_SETTINGS,
    longest=LENGTHS["relation"],
    captions="minicpm",
)
mkgformer = partial(
    convert,
    "mkgformer",
    mkgformer_names.convert_state,
    {"profile": "legacy", "vision": "random", "vision_patch": 32},
)
