"""Names -> classes. Other packages add theirs through entry points, without touching this file.

[project.entry-points."fusion_mre.methods"]
mine = "my_package.mine:Mine"
"""

import difflib
import importlib
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from shards.files import InputError


class MethodEntry(NamedTuple):
    """What a command line and a list must know of a method before torch is imported."""

    place: str
    """`module:Class` of the method."""
    config: str
    """`module:Class` of its settings, where nothing heavy is imported."""
    text: str
    kinds: tuple[str, ...] = ("relation",)
    """Kinds of task that it can do."""
    takes: str = "text and fusion layers, vision, bridge"
    """What it takes of an `--init` that is a fusion model."""


BOTH = ("entities", "relation")
_TEXT = "text and fusion layers"
_OR_VISION = f"{_TEXT}; vision by --model.vision init"
_OURS = "finetune.methods."
METHODS = {
    "mtb": MethodEntry(
        f"{_OURS}mtb:MTB",
        f"{_OURS}config:MTBConfig",
        "MTB: text only, the states of the two opening entity markers (Baldini Soares, ACL 2019).",
        takes=_TEXT,
    ),
    "bert_crf": MethodEntry(
        f"{_OURS}bert_crf:BertCrf",
        f"{_OURS}config:BertCrfConfig",
        "BERT-CRF: text only, emissions at first pieces, CRF over words.",
        ("entities",),
        takes=_TEXT,
    ),
    "promu": MethodEntry(
        f"{_OURS}promu:Promu",
        f"{_OURS}config:PromuConfig",
        "PROMU fine-tuned: fused text and picture states (ACM MM 2023).",
        BOTH,
    ),
    "retrieval": MethodEntry(
        f"{_OURS}retrieval.model:Retrieval",
        f"{_OURS}retrieval.config:RetrievalConfig",
        "Retrieval: post and picture ask, descriptions of the relations answer (after RoC, 2025).",
        takes=f"{_TEXT}, vision, bridge, projections",
    ),
    "two_tower": MethodEntry(
        f"{_OURS}two_tower:TwoTower",
        f"{_OURS}config:VisualConfig",
        "Late fusion: the class token of the picture joins the states of the text.",
        BOTH,
    ),
    "umt": MethodEntry(
        f"{_OURS}umt:Umt",
        f"{_OURS}config:UmtConfig",
        "UMT: cross-modal layers, a visual gate, spans beside entities (ACL 2020).",
        BOTH,
    ),
    "umgf": MethodEntry(
        f"{_OURS}umgf:Umgf",
        f"{_OURS}config:UmgfConfig",
        "UMGF: words and objects as one graph with gated edges (AAAI 2021).",
        BOTH,
    ),
    "mega": MethodEntry(
        f"{_OURS}mega:Mega",
        f"{_OURS}config:MegaConfig",
        "MEGA: graphs of text and objects, aligned (ACM MM 2021).",
    ),
    "ifaformer": MethodEntry(
        f"{_OURS}ifaformer:Ifaformer",
        f"{_OURS}config:IfaformerConfig",
        "IFAformer: objects as keys and values before the text in every layer (AAAI 2023).",
        BOTH,
    ),
    "visualbert": MethodEntry(
        f"{_OURS}visualbert:VisualBert",
        f"{_OURS}config:VisualConfig",
        "VisualBERT: words and patches in one stream through all layers (2019).",
        BOTH,
    ),
    "generative": MethodEntry(
        f"{_OURS}generative:Generative",
        f"{_OURS}config:GenerativeConfig",
        "A generative model that reads pictures: labels' words scored, zero-shot or with LoRA.",
        BOTH,
        takes="nothing: it begins with a generative model of transformers",
    ),
    "dgfpt": MethodEntry(
        f"{_OURS}dgfpt.model:Dgfpt",
        f"{_OURS}dgfpt.config:DgfptConfig",
        "DGF-PT: prefixes, staged reading, dual-gated fusion, generative decoder (ACL 2023).",
    ),
    "focalmre": MethodEntry(
        f"{_OURS}focalmre.model:FocalMRE",
        f"{_OURS}focalmre.config:FocalMREConfig",
        "FocalMRE: focal frames, focal attention, gating, focal fusion (ACM MM 2024 submission).",
    ),
    "mkgformer": MethodEntry(
        f"{_OURS}mkgformer.model:MKGformer",
        f"{_OURS}mkgformer.config:MKGformerConfig",
        "MKGformer: BERT and CLIP in lock-step, joined in their last layers (SIGIR 2022).",
        BOTH,
        takes=_OR_VISION,
    ),
    "hvpnet": MethodEntry(
        f"{_OURS}hvpnet.model:Hvpnet",
        f"{_OURS}hvpnet.config:HvpnetConfig",
        "HVPNeT: a picture's pyramid as key and value prefixes of every BERT layer (NAACL 2022).",
        BOTH,
        takes=_OR_VISION,
    ),
    "tmr": MethodEntry(
        f"{_OURS}tmr.model:Tmr",
        f"{_OURS}tmr.config:TmrConfig",
        "TMR: the picture, and one generated from the text, weighted by how well they match it.",
        BOTH,
        takes=_OR_VISION,
    ),
    "camim_hvpnet": MethodEntry(
        f"{_OURS}camim.model:CamimHvpnet",
        f"{_OURS}camim.config:CamimHvpnetConfig",
        "CAMIM on HVPNeT: captions that align pictures with the text; mutual information kept.",
        takes=_OR_VISION,
    ),
    "camim_tmr": MethodEntry(
        f"{_OURS}camim.model:CamimTmr",
        f"{_OURS}camim.config:CamimTmrConfig",
        "CAMIM on TMR: captions that align pictures with the text; mutual information kept.",
        takes=_OR_VISION,
    ),
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
    theirs = {entry.name: entry.value for entry in entry_points(group=f"fusion_mre.{kind}")}
    return theirs | ours(kind)


def ours(kind: str) -> dict[str, str]:
    """The same of this package alone: nothing installed is searched."""
    return TASKS if kind == "tasks" else {name: entry.place for name, entry in METHODS.items()}


def place_of(kind: str, name: str) -> str:
    """ "module:Class" of a name.

    Raises:
        InputError: no such name; says which there are.
    """
    if place := ours(kind).get(name):
        return place
    places = known(kind)
    if name not in places:
        close = difflib.get_close_matches(name, places, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        singular = kind.removesuffix("s")
        raise InputError(f"--{singular} {name}: unknown{hint}; there are {', '.join(places)}")
    return places[name]


def load(kind: str, name: str) -> Any:
    """The class called `name`.

    Raises:
        InputError: no such name, or an entry point of another package that cannot be imported.
    """
    place = place_of(kind, name)
    if name in METHODS or name in TASKS:
        return imported(place)
    try:
        return imported(place)
    except Exception as error:  # whatever another package's import raises is its fault, in one line
        raise InputError(
            f"--{kind.removesuffix('s')} {name}: the entry point {place} of another package is "
            f"broken ({type(error).__name__}: {error})"
        ) from error


def load_config(method: str) -> type:
    """The settings of a method; for one of ours without importing the method."""
    return imported(METHODS[method].config) if method in METHODS else load("methods", method).Config


def imported(place: str) -> Any:
    """What "module:name" names."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)
