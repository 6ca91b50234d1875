"""Where a run looks at the picture of a post: panels for `galleries.looks`."""

from dataclasses import dataclass

from finetune.inputs.batch import Batch
from finetune.predict.extractor import Extractor
from finetune.predict.occlusion import occlusion, overlay, strongest, thumbnail
from finetune.report.galleries import Panel, fitted, short
from finetune.report.papers import focalmre
from finetune.tasks.posts import Post
from shards.files import InputError

NEGLIGIBLE = 0.005
"""A loss of probability that rounding could be."""


@dataclass(frozen=True)
class Look:
    """One run before one post."""

    answer: str
    """Its relation and the probability."""
    needs: str
    """What the answer loses without the cell of the picture that counts most."""
    panels: list[Panel]


def look(name: str, extract: Extractor, post: Post) -> Look:
    """What the run's answer needs of the picture; of a run that attends, also where to.

    Raises:
        InputError: the run finds entities, or cannot read the post.
    """
    (post,) = extract.run.with_captions([post])  # of the whole picture, before parts are covered
    batches: list[Batch] = []
    method = extract.run.method
    with method.register_forward_pre_hook(lambda _, inputs: batches.append(inputs[0])):
        (answer,) = extract.answer([post], top_k=1)
    if "error" in answer:
        raise InputError(f"{name}: {answer['error']}")
    losses = occlusion(extract, post, answer["relation"])
    largest = strongest(losses)["loss"]
    if largest < NEGLIGIBLE:  # else the map would show noise, stretched to full brightness
        losses = losses * 0
    needs = f"a cell: up to {largest:.2f}" if largest >= NEGLIGIBLE else "loses nothing"
    relation = f"{short(answer['relation'])} {answer['probability']:.2f}"
    assert post.image is not None  # `occlusion` has looked at it
    panel = f"{fitted(name)}\n{relation}\n{needs}", overlay(thumbnail(post.image), losses)
    return Look(relation, needs, [panel, *focalmre.attention(method, batches[-1], fitted(name))])
