"""Every rule of every view: exact counts, nested levels, no fixed point."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from drawn import make_regions, make_rows

from finetune.data.view_rules import (
    align_noise,
    aug_noise,
    fraction,
    image_drop,
    iou,
    kshot,
    region_grid,
)
from finetune.inputs.view import Change, View
from finetune.tasks.base import Row
from finetune.tasks.mnre import Mnre
from shards.files import InputError

RATIOS = [Fraction(text) for text in ("0.05", "0.1", "0.2", "0.5", "1")]


# ---- align-noise -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["row", "tweet"])
@pytest.mark.parametrize("seed", range(4))
def test_align_noise(unit, seed):
    rows = make_rows(500)
    units = len(rows) if unit == "row" else len({row.image_id for row in rows})
    before: set[int] = set()
    for ratio in RATIOS:
        changes = align_noise(rows, ratio, seed, unit=unit)
        changed = [row for row in rows if row.row in changes]
        count = len(changes) if unit == "row" else len({row.image_id for row in changed})
        assert count == round(ratio * units)
        assert before <= changes.keys()  # nested
        assert all(changes[row.row].image_id != row.image_id for row in changed)
        if unit == "tweet":  # rows of one picture move together
            assert all(
                len({changes[row.row].image_id for row in changed if row.image_id == name}) == 1
                for name in {row.image_id for row in changed}
            )
        before = set(changes)


def test_align_noise_of_all_rows_is_a_permutation_of_the_pictures():
    rows = make_rows(500)
    changes = align_noise(rows, Fraction(1), 3)
    assert Counter(c.image_id for c in changes.values()) == Counter(row.image_id for row in rows)


def test_align_noise_carries_the_boxes():
    rows = make_rows(60)
    grounded, _ = make_regions(rows)
    changes = align_noise(rows, Fraction(1, 2), 1, grounded=grounded)
    for change in changes.values():
        assert change.vg in [grounded[r.row].regions for r in rows if r.image_id == change.image_id]


def test_align_noise_of_one_row_takes_a_donor_from_outside():
    rows = make_rows(20)
    ((row, change),) = align_noise(rows, Fraction(1, 20), 0).items()
    assert change.image_id != rows[row].image_id


@pytest.mark.parametrize("pictures", ["aaab", "aabb", "aaaabbbb", "ab", "abab"])
def test_align_noise_with_few_pictures(pictures):
    rows = [Row(row=i, image_id=name) for i, name in enumerate(pictures)]
    try:
        changes = align_noise(rows, Fraction(1), 0)
    except InputError:  # more than half of the rows share a picture
        assert max(Counter(pictures).values()) * 2 > len(pictures)
    else:
        assert all(changes[row.row].image_id != row.image_id for row in rows)


def test_align_noise_leaves_rows_without_a_picture_alone():
    rows = [Row(row=i, image_id=f"{i}.jpg" if i % 2 else None) for i in range(10)]
    assert all(row % 2 for row in align_noise(rows, Fraction(1), 0))


# ---- aug-noise ---------------------------------------------------------------------------------


def differences(rows, grounded, detected, changes):
    """(number modified, number deleted, the modified (row, box) pairs)."""
    modified, deleted, boxes = 0, 0, []
    for row in rows:
        change = changes.get(row.row, Change())
        for new, old in ((change.vg, grounded[row.row]), (change.od, detected[row.image_id])):
            if new is None:
                continue
            assert len(new) == len(old.regions)  # a deletion moves nothing
            deleted += new.count(None)
            fresh = [region for region in new if region and region not in old.regions]
            modified += len(fresh)
            boxes += [(row, region.box) for region in fresh]
            assert all(r is None or r.text == o.text for r, o in zip(new, old.regions, strict=True))
    return modified, deleted, boxes


@pytest.mark.parametrize(("p_modify", "low", "high"), [(0.5, 0.4, 0.6), (1.0, 1, 1), (0.0, 0, 0)])
def test_aug_noise_counts(p_modify, low, high):
    rows = make_rows(300)
    grounded, detected = make_regions(rows)
    total = sum(len(grounded[r.row].regions) + len(detected[r.image_id].regions) for r in rows)
    for ratio in (Fraction(1, 10), Fraction(3, 10), Fraction(1, 2), Fraction(1)):
        changes = aug_noise(rows, grounded, detected, ratio, 0, p_modify=p_modify)
        modified, deleted, _ = differences(rows, grounded, detected, changes)
        assert modified + deleted == round(ratio * total)
        assert low <= modified / (modified + deleted) <= high


def test_aug_noise_boxes():
    """IoU at most 0.1 with every true region of the row, inside the picture, sane size and form."""
    rows = make_rows(200)
    grounded, detected = make_regions(rows)
    changes = aug_noise(rows, grounded, detected, Fraction(1), 0, p_modify=1.0)
    _, _, boxes = differences(rows, grounded, detected, changes)
    overlaps = []
    for row, box in boxes:
        true = [r.box for e in (grounded[row.row], detected[row.image_id]) for r in e.regions]
        overlaps.append(iou(np.array(box), np.array(true)).max())
        x1, y1, x2, y2 = box
        assert 0 <= x1 < x2 <= 800 and 0 <= y1 < y2 <= 600
        assert 0.049 <= (x2 - x1) * (y2 - y1) / (800 * 600) <= 0.501
        assert 0.499 <= (x2 - x1) / (y2 - y1) <= 2.001
    assert np.mean(np.array(overlaps) <= 0.1) > 0.97  # crowded rows keep the best of 50 tries


def test_aug_noise_is_nested():
    rows = make_rows(100)
    grounded, detected = make_regions(rows)
    few = aug_noise(rows, grounded, detected, Fraction(1, 10), 5)
    many = aug_noise(rows, grounded, detected, Fraction(1, 2), 5)
    for row, change in few.items():
        for kind in ("vg", "od"):
            old = (grounded[row] if kind == "vg" else detected[rows[row].image_id]).regions
            after_few, after_many = getattr(change, kind), getattr(many[row], kind)
            if after_few is None:
                continue
            fresh = set(after_few) - set(old) - {None}
            assert fresh <= set(after_many)  # the same random boxes
            gone = [place for place, region in enumerate(after_few) if region is None]
            assert not any(after_many[place] for place in gone)  # and the same ones deleted


def test_aug_noise_spoils_what_the_method_sees():
    """Of long caches only the first places change, and the share is of these."""
    rows = make_rows(300)
    grounded, detected = make_regions(rows)
    changes = aug_noise(
        rows, grounded, detected, Fraction(1, 2), 0, p_modify=0, num_grounded=1, num_detected=2
    )
    seen = sum(len(grounded[r.row].regions[:1]) for r in rows)
    seen += sum(len(detected[r.image_id].regions[:2]) for r in rows)
    places = [(c.vg or ())[1:] + (c.od or ())[2:] for c in changes.values()]
    assert not any(None in place for place in places)
    gone = sum((c.vg or ()).count(None) + (c.od or ()).count(None) for c in changes.values())
    assert gone == round(Fraction(1, 2) * seen)


def test_iou():
    others = np.array([[0, 0, 10, 10], [5, 5, 15, 15], [20, 20, 30, 30], [0, 0, 5, 10]])
    assert iou(np.array([0, 0, 10, 10]), others).tolist() == [1, 25 / 175, 0, 0.5]


# ---- fraction, k-shot, image-drop, region-grid ---------------------------------------------------


@pytest.mark.parametrize("stratified", [False, True])
def test_fraction_sizes_of_mnre(stratified):
    """The row numbers of FocalMRE's low-resource table."""
    rows = make_rows(12247)
    kept_before: set[int] = set()
    for ratio, size in [
        ("0.05", 612), ("0.1", 1224), ("0.2", 2449), ("0.3", 3674), ("0.4", 4898), ("0.5", 6123)
    ]:  # fmt: skip
        changes = fraction(rows, Fraction(ratio), 1, stratified=stratified)
        kept = {row.row for row in rows} - changes.keys()
        assert len(kept) == size and kept_before <= kept
        kept_before = kept
        if stratified:
            for label, total in Counter(row.relation for row in rows).items():
                taken = sum(rows[i].relation == label for i in kept)
                assert abs(taken - float(Fraction(ratio)) * total) <= 1.5


def test_fraction_draws_what_training_draws():
    """`--fraction` of `finetune train` and this view keep the same rows for the same seed."""
    from finetune.protocols import fraction_rows

    rows = make_rows(1000)
    kept = [row.row for row in rows if row.row not in fraction(rows, Fraction("0.29"), 7)]
    assert kept == fraction_rows(1000, 0.29, 7).tolist()


def test_kshot():
    rows = make_rows(600)
    sizes = Counter(row.relation for row in rows)
    assert sizes["c"] < 10
    before: set[int] = set()
    for shots in (1, 2, 5, 10):
        kept = {row.row for row in rows} - kshot(rows, shots, 4).keys()
        taken = Counter(rows[i].relation for i in kept)
        assert taken == {label: min(shots, size) for label, size in sizes.items()}
        assert before <= kept
        before = kept
    kept = {row.row for row in rows} - kshot(rows, 2, 4, unlimited="None").keys()
    assert Counter(rows[i].relation for i in kept)["None"] == sizes["None"]


def test_image_drop_by_picture_and_nested():
    rows = make_rows(300)
    pictures = {row.image_id for row in rows}
    before: set[str] = set()
    for keep in (Fraction(k, 5) for k in range(6)):
        changes = image_drop(rows, keep, 2)
        kept = {row.image_id for row in rows if row.row not in changes}
        lost = {row.image_id for row in rows if row.row in changes}
        assert not kept & lost and len(kept) == round(keep * len(pictures)) and before <= kept
        assert all(change == Change(no_image=True) for change in changes.values())
        before = kept


def test_region_grid():
    rows = make_rows(50)
    grounded, detected = make_regions(rows)
    view = View("val", region_grid(rows, grounded, detected, 2, 1))
    for row in rows:
        assert view.grounded(row, grounded) == grounded[row.row].regions[:2]
        assert view.detected(row, detected) == detected[row.image_id].regions[:1]


# ---- the real rows -------------------------------------------------------------------------------


def test_sizes_on_mnre(shared_data):
    """specs/focalmre.md §4.1, §4.3, §4.4."""
    task = Mnre(shared_data / "mnre")
    train, val = task.read("train"), task.read("val")
    for ratio, size in (("0.05", 612), ("0.1", 1224), ("0.5", 6123)):
        assert len(train) - len(fraction(train, Fraction(ratio), 1)) == size
    for shots, size in ((1, 23), (2, 46), (5, 115), (10, 218)):
        assert len(train) - len(kshot(train, shots, 1)) == size
    for ratio, size in (("0.05", 81), ("0.1", 162), ("0.2", 325), ("0.5", 812), ("1", 1624)):
        changes = align_noise(val, Fraction(ratio), 1)
        assert len(changes) == size
        assert all(changes[r.row].image_id != r.image_id for r in val if r.row in changes)
    changes = image_drop(val, Fraction("0.4"), 1)
    assert len({row.image_id for row in val if row.row not in changes}) == round(0.4 * 931)
