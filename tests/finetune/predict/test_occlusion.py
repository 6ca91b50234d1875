"""Occlusion against a run whose eyes are known: it counts red pixels in one corner."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from finetune.predict import occlusion
from finetune.tasks.posts import Post
from shards.files import InputError

SIZE = (70, 56)


class Eyes:
    """P(red) = share of red pixels in the left upper quarter."""

    info = SimpleNamespace(kind="relation", labels=("None", "red"))

    def answers(self, wanted):
        shares = []
        for post, _, _ in wanted:
            pixels = np.asarray(Image.open(post.image))[: SIZE[1] // 2, : SIZE[0] // 2]
            share = (pixels == (255, 0, 0)).all(-1).mean()
            shares.append(("red", np.array([1 - share, share])))
        return shares


@pytest.fixture
def post(tmp_path):
    """Red but for a green stripe."""
    picture = Image.new("RGB", SIZE, (255, 0, 0))
    picture.paste((0, 255, 0), (0, 0, 10, SIZE[1]))
    picture.save(tmp_path / "a.png")
    return Post("Bob in Oslo", ("Bob", "in", "Oslo"), (), (0, 1), (2, 3), tmp_path / "a.png")


def test_each_cell_is_worth_the_red_it_covers(post):
    worth = occlusion.occlusion(SimpleNamespace(run=Eyes()), post, "red")
    red = np.zeros((SIZE[1], SIZE[0]))
    red[: SIZE[1] // 2, 10 : SIZE[0] // 2] = 1
    expected = red.reshape(7, 8, 7, 10).sum((1, 3)) / (SIZE[0] // 2 * SIZE[1] // 2)
    np.testing.assert_allclose(worth, expected, atol=1e-12)
    best = occlusion.strongest(worth)
    assert (best["row"], best["column"]) == (0, 1)
    assert best["loss"] == pytest.approx(expected.max())


def test_cells_tile_any_picture():
    for size in [(70, 56), (7, 7), (101, 33)]:
        seen = np.zeros(size[::-1], int)
        for row in range(7):
            for column in range(7):
                left, top, right, bottom = occlusion.cell(size, 7, row, column)
                seen[top:bottom, left:right] += 1
        assert (seen == 1).all()


def test_overlay_is_bright_where_it_counts_and_leaves_the_rest():
    worth = np.full((7, 7), -0.5)
    worth[1, 5] = 0.8
    picture = Image.new("RGB", (140, 70), (10, 20, 30))
    shown = np.asarray(occlusion.overlay(picture, worth)).astype(int)
    assert shown.shape == (240, 480, 3)
    assert (shown[200, 50] == (10, 20, 30)).all()
    changed = np.abs(shown - (10, 20, 30)).sum(-1)
    y, x = np.unravel_index(changed.argmax(), changed.shape)
    assert 240 / 7 <= y < 480 / 7 and 5 * 480 / 7 <= x < 6 * 480 / 7
    assert (np.asarray(occlusion.overlay(picture, worth * 0)) == (10, 20, 30)).all()


def test_what_cannot_be_looked_into(post):
    without = Post(post.text, post.tokens, (), post.head, post.tail, None)
    with pytest.raises(InputError, match="beside a picture"):
        occlusion.occlusion(SimpleNamespace(run=Eyes()), without, "red")
    assert isinstance(post.image, Path)
