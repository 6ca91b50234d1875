"""Leak-safe regions of a row: phrases from its text, a box for each phrase, objects of the picture.

Nothing here sees the label. The phrases are the two entity names, then the nouns of the post
(FocalMRE). The published regions also asked for the entity types that the gold relation names,
which is why their number gives the label away.
"""

import re
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import groupby
from typing import Any

from PIL import Image

from finetune.tasks.region_cache import Region
from pretrain.checkpoint.remote import resolve
from shards.files import InputError
from shards.objects import FasterRCNN, clip
from shards.processors import commit_of, load_processor

Tagger = Callable[[Sequence[str]], list[str]]
"""Tokens -> universal part-of-speech tags, one each."""
Keyword = tuple[str, str]
"""(phrase, kind): kind is head, tail or noun."""

JUNK = re.compile(r"RT|https?:\S*|www\.\S*|\d+|\W+")
"""Tokens that name nothing to be seen."""


def keywords(row: Any, tag: Tagger | None, limit: int = 4) -> list[Keyword]:
    """Head name, tail name, then the nouns in text order; no phrase twice, `limit` at most.

    A noun is a run of tokens tagged NOUN or PROPN that touches no entity. Entities come first so
    that neither ever lacks a region.

    Args:
        row: with `tokens`, and `head` and `tail` spans where the task has them.
        tag: None = entity names alone.
    """
    spans = {kind: getattr(row, kind) for kind in ("head", "tail") if hasattr(row, kind)}
    tokens: Sequence[str] = row.tokens
    phrases = [(_name(tokens[start:end]), kind) for kind, (start, end) in spans.items()]
    if tag is not None:
        phrases += [(phrase, "noun") for phrase in nouns(tokens, tag(tokens), list(spans.values()))]
    first: dict[str, Keyword] = {}
    for phrase, kind in phrases:
        if phrase:
            first.setdefault(phrase.lower(), (phrase, kind))
    return list(first.values())[:limit]


def nouns(
    tokens: Sequence[str], tags: Sequence[str], spans: Sequence[tuple[int, int]]
) -> list[str]:
    """Runs of nouns outside the spans, without `@` and `#`."""
    phrases = []
    places = range(len(tokens))

    def is_noun(place: int) -> bool:
        return tags[place] in ("NOUN", "PROPN") and not JUNK.fullmatch(tokens[place])

    for noun, run in groupby(places, key=is_noun):
        within = list(run)
        if noun and not any(start <= place < end for start, end in spans for place in within):
            phrases.append(" ".join(tokens[place].lstrip("@#") for place in within))
    return phrases


def _name(tokens: Sequence[str]) -> str:
    """An entity's name as a query: no leading RT, no @."""
    words = list(tokens[1:] if tokens[0] == "RT" and len(tokens) > 1 else tokens)
    return " ".join([words[0].lstrip(".@#"), *words[1:]]).strip()


def spacy_tagger(model: str) -> Tagger:
    """Part-of-speech tags by a spaCy model, on the tokens as they are."""
    import spacy
    from spacy.tokens import Doc

    try:
        nlp = spacy.load(model, exclude=["ner", "parser", "lemmatizer"])
    except OSError:
        raise InputError(
            f"spaCy model {model} is not installed: `python -m spacy download {model}`, "
            "or --tagger none for entity names alone"
        ) from None
    return lambda tokens: [token.pos_ for token in nlp(Doc(nlp.vocab, words=list(tokens)))]


class Grounder:
    """Grounding DINO: the best box for each phrase, whatever its score."""

    def __init__(self, model: str, device: str = "cpu"):
        from transformers import AutoModelForZeroShotObjectDetection

        try:
            folder = resolve(model)  # asks the hub once; `from_pretrained` would try for a minute
            self.processor = load_processor(folder)
            self.model = AutoModelForZeroShotObjectDetection.from_pretrained(
                folder, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise InputError(
                f"--grounder {model}: cannot be loaded ({str(error).splitlines()[0]}); give a "
                "folder, or fetch one with `hf download IDEA-Research/grounding-dino-base`"
            ) from None
        self.model.eval().to(device)
        self.provenance: dict[str, Any] = {
            "model": model,
            "revision": commit_of(folder),
            "versions": {"transformers": version("transformers")},
            "thresholds": {"box": 0.0, "text": 0.0},
        }

    def __call__(self, picture: Image.Image, phrases: Sequence[Keyword]) -> list[Region]:
        """One region a phrase, in their order, in absolute pixels of `picture`."""
        import torch

        if not phrases:
            return []
        picture = picture.convert("RGB")
        inputs = self.processor(
            images=[picture] * len(phrases),
            text=[f"{phrase.lower()}." for phrase, _ in phrases],
            padding=True,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        with torch.inference_mode():
            output = self.model(**inputs)
        results = self.processor.post_process_grounded_object_detection(
            output,
            inputs.input_ids,
            threshold=0.0,
            text_threshold=0.0,
            target_sizes=[(picture.height, picture.width)] * len(phrases),
        )
        regions = []
        for (phrase, kind), result in zip(phrases, results, strict=True):
            for index in result["scores"].argsort(descending=True).tolist():
                box = clip(result["boxes"][index].tolist(), picture.size)
                if box is not None:  # boxes wholly outside the picture: take the next best
                    regions.append(Region(box, float(result["scores"][index]), phrase, kind))
                    break
        return regions


class ObjectDetector:
    """Faster R-CNN: the best boxes of a picture."""

    def __init__(self, weights: str, device: str = "cpu", limit: int | None = 3):
        """
        Args:
            weights: `COCO_V1` (fetched by torchvision), or a file with its state dict.
            limit: boxes kept a picture; None: all.
        """
        self.find = FasterRCNN(weights, device, option="--detector")
        self.limit = limit
        self.provenance: dict[str, Any] = {
            "model": f"fasterrcnn_resnet50_fpn_v2 {weights}",
            "versions": {"torchvision": version("torchvision")},
            "thresholds": {"box": self.find.model.roi_heads.score_thresh},
        }

    def __call__(self, picture: Image.Image) -> list[Region]:
        """At most `limit` regions, best first, in absolute pixels of `picture`."""
        (objects,) = self.find([picture.convert("RGB")])
        boxes = [(clip(item.box, picture.size), item) for item in objects]
        regions = [Region(box, item.score, item.label) for box, item in boxes if box is not None]
        return regions[: self.limit]
