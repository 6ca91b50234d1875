"""DGF-PT's figures that need no model, only what runs answered.

Figure 4: scores of relations by how often train has them. Relations share a bin where their numbers
of training rows lie between the same edges (Section 4.3 of the paper), or each is a point of its
own. Figure 5: all entity pairs of a post, and what each run says of them; rows of a relation task
belong to one post where they have the same words and the same picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.report import figures
from finetune.report.figures import LINES, MARKS, PAPER, PLAIN, SMALL, in_legend
from finetune.report.tables import mean, relation_f1
from finetune.run.results import Predictions
from finetune.tasks import metrics
from finetune.tasks.mnre import RelationRow
from shards.files import InputError

EDGES = (0, 20, 100, 200, 500, 1000)
"""Of the paper; they leave out what train has more often: None."""
SCORES = ("precision", "recall", "f1")
Bins = dict[str, dict[str, float]]
"""Bin -> `precision`, `recall`, `f1` in percent (mean over seeds) and `support`, rows of test."""


def edges(text: str) -> tuple[int, ...]:
    """`0,20,100`: each bin holds its lower edge, not its upper one.

    Raises:
        InputError: not two or more rising whole numbers.
    """
    words = [word.strip() for word in text.split(",")]
    numbers = tuple(int(word) for word in words if word.isdecimal())
    if len(numbers) < max(2, len(words)) or sorted(set(numbers)) != list(numbers):
        raise InputError(f"--edges {text}: rising whole numbers are needed, such as 0,20,100")
    return numbers


def binned(
    answers: Mapping[str, Sequence[Predictions]], train: Mapping[str, int], between: Sequence[int]
) -> dict[str, Bins]:
    """Run -> its bins; those in which test has no row are left out.

    Args:
        answers: of each seed of each run.
        train: relation -> its number of training rows.
    """
    bins = {}
    for name, predictions in answers.items():
        seeds = [
            metrics.scores_by_frequency(a.gold, a.answers, train, between) for a in predictions
        ]
        bins[name] = {
            label: {key: mean([seed[label][key] for seed in seeds]) for key in SCORES}
            | {"support": seeds[0][label]["support"]}
            for label in seeds[0]
            if seeds[0][label]["support"]
        }
    return bins


def points(
    answers: Mapping[str, Sequence[Predictions]], train: Mapping[str, int]
) -> dict[str, list[tuple[str, int, float]]]:
    """Run -> (relation, its training rows, its F1 in percent), the rarest first.

    Raises:
        InputError: the runs were tested on different rows.
    """
    return {
        name: sorted(
            ((label, train.get(label, 0), values["f1"]) for label, values in scores.items()),
            key=lambda point: (point[1], point[0]),
        )
        for name, scores in relation_f1(answers, train).items()
    }


def lines(bins_of_runs: Mapping[str, Bins]) -> list[str]:
    """The bins of every run as text, a line each."""
    texts = [f"{'training rows':>14}  {'test':>5}  {'P':>6}  {'R':>6}  {'F1':>6}  run"]
    for name, bins in bins_of_runs.items():
        for label, scores in bins.items():
            values = "  ".join(f"{scores[key]:6.2f}" for key in SCORES)
            texts.append(f"{label:>14}  {scores['support']:5.0f}  {values}  {name}")
    return texts


def draw(
    bins_of_runs: Mapping[str, Bins],
    single: Mapping[str, Sequence[tuple[str, int, float]]],
    path: Path,
) -> None:
    """F1 of each bin, a line a run; below, a point a relation over a logarithmic axis."""
    figure = figures.canvas(PAPER, 4.6)
    above, below = figure.subplots(2, 1)
    labels = list(dict.fromkeys(label for bins in bins_of_runs.values() for label in bins))
    for number, name in enumerate(bins_of_runs):
        look = {"color": LINES[number % len(LINES)], "marker": MARKS[number % len(MARKS)]}
        filled = [label for label in labels if label in bins_of_runs[name]]
        heights = [bins_of_runs[name][label]["f1"] for label in filled]
        places = [labels.index(label) for label in filled]
        above.plot(places, heights, **look, markersize=4, linewidth=1.2, label=in_legend(name))
        rows, f1 = ([point[i] for point in single[name]] for i in (1, 2))
        below.scatter(rows, f1, s=10, linewidths=0, **look)
    above.set_xticks(range(len(labels)), labels)
    # Not a plain logarithm: a relation that train does not have stands at 0.
    below.set_xscale("symlog", linthresh=10)
    below.xaxis.set_major_formatter("{x:g}")
    for axes, title in ((above, "training rows of a relation"), (below, "one point a relation")):
        axes.set_ylim(-3, 103)
        axes.set_xlabel(title, fontsize=SMALL + 1)
        axes.set_ylabel("test F1 (%)", fontsize=SMALL + 1)
        axes.tick_params(labelsize=SMALL)
    figure.legend(loc="outside upper left", **PLAIN)
    figures.save(figure, path, dpi=300)


# ---- Figure 5 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pair:
    """A row: two entities of a post."""

    row: int
    head: str
    tail: str
    gold: str
    answers: Mapping[str, str]
    """Run -> its answer."""


@dataclass(frozen=True)
class Tweet:
    """A post with its rows, in file order."""

    text: str
    image_id: str | None
    pairs: Sequence[Pair]

    def disputed(self) -> bool:
        """Whether the runs say different things of a pair."""
        return any(len(set(pair.answers.values())) > 1 for pair in self.pairs)


def tweets(rows: Iterable[RelationRow], answers: Mapping[str, Mapping[int, str]]) -> list[Tweet]:
    """The posts in the order of their first row.

    Args:
        answers: run -> row -> its answer, for every row.
    """
    posts: dict[tuple[tuple[str, ...], str | None], list[Pair]] = {}
    for row in rows:
        head, tail = (" ".join(row.tokens[slice(*span)]) for span in (row.head, row.tail))
        labels = {name: given[row.row] for name, given in answers.items()}
        pair = Pair(row.row, head, tail, row.relation, labels)
        posts.setdefault((row.tokens, row.image_id), []).append(pair)
    return [Tweet(" ".join(words), image, pairs) for (words, image), pairs in posts.items()]


def post_lines(tweet: Tweet) -> list[str]:
    """As text: the post, then a line a pair; a star before an answer that is wrong."""
    texts = [f"{tweet.text}  [{tweet.image_id or 'no picture'}]"]
    for pair in tweet.pairs:
        labels = "  ".join(
            f"{name}: {'' if answer == pair.gold else '*'}{answer}"
            for name, answer in pair.answers.items()
        )
        texts.append(f"  {pair.row}: {pair.head} → {pair.tail}  gold: {pair.gold}  {labels}")
    return texts
