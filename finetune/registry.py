"""Names -> classes. Other packages add theirs through entry points, without touching this file.

[project.entry-points."fusion_mre.methods"]
mine = "my_package.mine:Mine"
"""

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any

from shards.files import InputError

METHODS = {
    "mtb": "finetune.methods.mtb:MTB",
    "bert_crf": "finetune.methods.bert_crf:BertCrf",
    "promu": "finetune.methods.promu:Promu",
    "dgfpt": "finetune.methods.dgfpt.model:Dgfpt",
    "focalmre": "finetune.methods.focalmre.model:FocalMRE",
    "mkgformer": "finetune.methods.mkgformer.model:MKGformer",
    "hvpnet": "finetune.methods.hvpnet.model:Hvpnet",
    "tmr": "finetune.methods.tmr.model:Tmr",
    "camim_hvpnet": "finetune.methods.camim.model:CamimHvpnet",
    "camim_tmr": "finetune.methods.camim.model:CamimTmr",
}
TASKS = {
    "mnre": "finetune.tasks.mnre:Mnre",
    "relations": "finetune.tasks.relations:OwnRelations",
    "twitter2015": "finetune.tasks.twitter:Twitter2015",
    "twitter2017": "finetune.tasks.twitter:Twitter2017",
    "entities": "finetune.tasks.twitter:OwnEntities",
}


def known(kind: str) -> dict[str, str]:
    """`"methods"` or `"tasks"`: name -> "module:Class", ours and those of entry points."""
    ours = {"methods": METHODS, "tasks": TASKS}[kind]
    theirs = {entry.name: entry.value for entry in entry_points(group=f"fusion_mre.{kind}")}
    return theirs | ours


def load(kind: str, name: str) -> Any:
    """The class called `name`.

    Raises:
        InputError: no such name; says which there are.
    """
    classes = known(kind)
    if name not in classes:
        close = difflib.get_close_matches(name, classes, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        singular = kind.removesuffix("s")
        raise InputError(f"--{singular} {name}: unknown{hint}; there are {', '.join(classes)}")
    module, _, attribute = classes[name].partition(":")
    return getattr(importlib.import_module(module), attribute)
