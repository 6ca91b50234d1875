"""DGF-PT, Figure 5: all entity pairs of a post, and what each run says of them.

Rows of a relation task belong to one post where they have the same words and the same picture.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finetune.tasks.mnre import RelationRow


@dataclass(frozen=True)
class Pair:
    """A row: two entities of a post."""

    row: int
    head: str
    tail: str
    gold: str
    said: Mapping[str, str]
    """Run -> its answer."""


@dataclass(frozen=True)
class Tweet:
    """A post with its rows, in file order."""

    text: str
    image_id: str | None
    pairs: Sequence[Pair]

    def disputed(self) -> bool:
        """Whether the runs say different things of a pair."""
        return any(len(set(pair.said.values())) > 1 for pair in self.pairs)


def tweets(rows: Iterable[RelationRow], answers: Mapping[str, Mapping[int, str]]) -> list[Tweet]:
    """The posts in the order of their first row.

    Args:
        answers: run -> row -> its answer, for every row.
    """
    posts: dict[tuple[tuple[str, ...], str | None], list[Pair]] = {}
    for row in rows:
        head, tail = (" ".join(row.tokens[slice(*span)]) for span in (row.head, row.tail))
        said = {name: given[row.row] for name, given in answers.items()}
        pair = Pair(row.row, head, tail, row.relation, said)
        posts.setdefault((row.tokens, row.image_id), []).append(pair)
    return [Tweet(" ".join(words), image, pairs) for (words, image), pairs in posts.items()]


def lines(tweet: Tweet) -> list[str]:
    """As text: the post, then a line a pair; a star before an answer that is wrong."""
    found = [f"{tweet.text}  [{tweet.image_id or 'no picture'}]"]
    for pair in tweet.pairs:
        said = "  ".join(
            f"{name}: {'' if answer == pair.gold else '*'}{answer}"
            for name, answer in pair.said.items()
        )
        found.append(f"  {pair.row}: {pair.head} → {pair.tail}  gold: {pair.gold}  {said}")
    return found
