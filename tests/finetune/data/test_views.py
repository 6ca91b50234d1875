"""Every rule of every view: exact counts, nested levels, no fixed point, equal bytes."""

import hashlib
import json
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from finetune.data.view_rules import (
    align_noise,
    aug_noise,
    fraction,
    image_drop,
    iou,
    kshot,
    region_grid,
)
from finetune.data.views import main
from finetune.inputs.view import Change, View, merged, read_view, write_view
from finetune.tasks.base import Row
from finetune.tasks.mnre import Mnre, RelationRow
from finetune.tasks.region_cache import Region, Regions, write_regions
from shards.files import InputError

SIZE = (800, 600)
RATIOS = [Fraction(text) for text in ("0.05", "0.1", "0.2", "0.5", "1")]


def make_rows(count, rows_per_picture=1.66, seed=0):
    """Rows whose pictures serve one or more of them, in runs, and relations of uneven frequency."""
    generator = np.random.default_rng(seed)
    pictures = np.sort(generator.integers(0, max(1, int(count / rows_per_picture)), count))
    relations = generator.choice(["None", "a", "b", "c"], size=count, p=[0.63, 0.3, 0.06, 0.01])
    return [
        RelationRow(
            row=i, image_id=f"{p}.jpg", tokens=("x", "y"), head=(0, 1), tail=(1, 2), relation=r
        )
        for i, (p, r) in enumerate(zip(pictures, relations.tolist(), strict=True))
    ]


def make_regions(rows, seed=0):
    """Up to 4 grounded regions a row, up to 3 detected ones a picture."""
    generator = np.random.default_rng(seed)

    def some(limit, kind):
        corners = generator.random((generator.integers(limit + 1), 2)) * [600, 400]
        return tuple(
            Region((x, y, x + 150, y + 150), 0.5, f"{kind}{i}", kind)
            for i, (x, y) in enumerate(corners.round(1).tolist())
        )

    grounded = {row.row: Regions(row.image_id, SIZE, some(4, "noun")) for row in rows}
    names = dict.fromkeys(row.image_id for row in rows)
    return grounded, {name: Regions(name, SIZE, some(3, "object")) for name in names}


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
            deleted += len(old.regions) - len(new)
            fresh = [region for region in new if region not in old.regions]
            modified += len(fresh)
            boxes += [(row, region.box) for region in fresh]
            assert [r.text for r in new] == [
                r.text for r in old.regions if r.text in {n.text for n in new}
            ]
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
            fresh = set(after_few) - set(old)
            assert fresh <= set(after_many)  # the same random boxes
            gone = {r.text for r in old} - {r.text for r in after_few}
            assert not gone & {r.text for r in after_many}  # and the same ones deleted


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
    kept = {row.row for row in rows} - kshot(rows, 2, 4, include_none=False).keys()
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


# ---- manifests -----------------------------------------------------------------------------------

REGION = Region((1.0, 2.0, 3.5, 4.0), 0.5, "oslo", "tail")
CHANGES = {
    0: Change(drop=True),
    2: Change(image_id="b.jpg", vg=(REGION,), od=()),
    3: Change(no_image=True),
}
VIEW = View("val", CHANGES, {"tool": "t", "params": {}, "seed": 1, "split": "val", "sources": {}})


def test_round_trip(tmp_path):
    path = tmp_path / "view.jsonl"
    write_view(path, VIEW)
    assert read_view(path) == VIEW
    assert [json.loads(line) for line in path.read_text().splitlines()[1:]] == [
        {"row": 0, "drop": True},
        {
            "row": 2,
            "img_id": "b.jpg",
            "vg": [{"box": [1.0, 2.0, 3.5, 4.0], "score": 0.5, "phrase": "oslo", "kind": "tail"}],
            "od": [],
        },
        {"row": 3, "no_image": True},
    ]


def test_apply():
    rows = [Row(row=i, image_id="a.jpg") for i in range(4)]
    shown = VIEW.apply(rows, "val")
    assert [(row.row, row.image_id) for row in shown] == [(1, "a.jpg"), (2, "b.jpg"), (3, None)]
    cached = {i: Regions("a.jpg", SIZE, (REGION, REGION)) for i in range(4)}
    by_picture = {"a.jpg": cached[0], "b.jpg": Regions("b.jpg", SIZE, (REGION,))}
    assert [len(VIEW.grounded(row, cached)) for row in shown] == [2, 1, 0]
    assert [len(VIEW.detected(row, by_picture)) for row in shown] == [2, 0, 0]
    moved = View("val", {1: Change(image_id="b.jpg")})
    (row,) = (row for row in moved.apply(rows, "val") if row.row == 1)
    assert len(moved.detected(row, by_picture)) == 1
    with pytest.raises(InputError, match="without its boxes"):
        moved.grounded(row, cached)


def test_apply_refuses_a_foreign_split():
    rows = [Row(row=i, image_id="a.jpg") for i in range(3)]
    with pytest.raises(InputError, match="made for the val split"):
        VIEW.apply(rows, "test")
    with pytest.raises(InputError, match="row 3, which the val split lacks"):
        VIEW.apply(rows, "val")


def test_merged():
    """Few labels and wrong pictures at once: the second view may change rows the first drops."""
    rows = [Row(row=i, image_id="a.jpg") for i in range(5)]
    few = View("val", {0: Change(drop=True), 1: Change(drop=True)}, {"tool": "fraction"})
    spoilt = View("val", {2: Change(vg=(REGION,)), 3: Change(vg=())})
    wrong = View("val", {i: Change(image_id="b.jpg") for i in (0, 2)}, {"tool": "align-noise"})
    both = merged([few, spoilt, wrong])
    shown = both.apply(rows, "val")
    assert [(row.row, row.image_id) for row in shown] == [(2, "b.jpg"), (3, "a.jpg"), (4, "a.jpg")]
    assert both.changes[2].vg is None and both.changes[3].vg == ()  # no boxes of another picture
    assert [header.get("tool") for header in both.header["views"]] == [
        "fraction", None, "align-noise"
    ]  # fmt: skip
    assert merged([VIEW]).changes == VIEW.changes
    with pytest.raises(InputError, match="different splits cannot be merged: val, test"):
        merged([few, View("test", {})])


HEADER = json.dumps({"tool": "t", "split": "val"})
DAMAGE = {
    "empty": "",
    "no header": '{"row": 1, "drop": true}',
    "header for a split dev": '{"tool": "t", "split": "dev"}',
    "not JSON": HEADER + "\n{'row': 1}",
    "cut": HEADER + '\n{"row": 1, "dr',
    "a list": HEADER + "\n[1]",
    "no row": HEADER + '\n{"drop": true}',
    "row a string": HEADER + '\n{"row": "1", "drop": true}',
    "twice": HEADER + '\n{"row": 1, "drop": true}\n{"row": 1, "drop": true}',
    "unknown key": HEADER + '\n{"row": 1, "droped": true}',
    "drop a number": HEADER + '\n{"row": 1, "drop": 1}',
    "img_id a number": HEADER + '\n{"row": 1, "img_id": 17}',
    "boxes without scores": HEADER + '\n{"row": 1, "vg": [{"box": [1, 2, 3, 4]}]}',
    "boxes of nothing": HEADER + '\n{"row": 1, "od": [{"box": [1, 2, 1, 4], "score": 1}]}',
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_manifest(tmp_path, name):
    path = tmp_path / "view.jsonl"
    path.write_text(DAMAGE[name])
    with pytest.raises(InputError) as caught:
        read_view(path)
    assert str(caught.value).startswith(f"{path}:") and "\n" not in str(caught.value)


# ---- command -------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path):
    data = tmp_path / "mnre"
    (data / "txt").mkdir(parents=True)
    (data / "ours_rel2id.json").write_text(json.dumps({"None": 0, "a": 1, "b": 2, "c": 3}))
    cache = tmp_path / "regions"
    detected = {}
    for seed, split in enumerate(("train", "val")):
        rows = make_rows(120, seed=seed)
        lines = [
            {
                "token": list(row.tokens),
                "h": {"name": "x", "pos": [0, 1]},
                "t": {"name": "y", "pos": [1, 2]},
                "img_id": row.image_id,
                "relation": row.relation,
            }
            for row in rows
        ]
        (data / "txt" / f"ours_{split}.txt").write_text("".join(f"{line}\n" for line in lines))
        grounded, found = make_regions(rows, seed)
        write_regions(cache / f"regions_vg_{split}.jsonl", {"leaky": False}, grounded)
        detected |= found
    write_regions(cache / "regions_od.jsonl", {"leaky": False}, detected)
    return data, cache


@pytest.mark.parametrize(
    "tool",
    [
        "align-noise --ratio 0.2",
        "align-noise --ratio 0.2 --unit tweet --regions CACHE --scope dev",
        "aug-noise --ratio 0.3 --regions CACHE --scope all",
        "fraction --ratio 0.5",
        "fraction --ratio 0.5 --stratified",
        "kshot --k 2",
        "kshot --k 2 --no-include-none",
        "image-drop --keep 0.4",
        "region-grid --num-grounded 1 --num-detected 0 --regions CACHE",
    ],
)
def test_command_writes_equal_bytes(corpus, tmp_path, tool):
    data, cache = corpus
    argv = [*tool.replace("CACHE", str(cache)).split(), "--data", str(data)]
    outputs = []
    for name, seed in (("one", "1"), ("two", "1"), ("three", "2")):
        main([*argv, "--out", str(tmp_path / name), "--seed", seed])
        outputs.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert outputs[0] == outputs[1]
    if not tool.startswith("region-grid"):
        assert outputs[0] != outputs[2]
    for name, content in outputs[0].items():
        view = read_view(tmp_path / "one" / name)
        assert view.header["tool"] == tool.split()[0] and name == f"{view.split}.jsonl"
        text = data / "txt" / f"ours_{view.split}.txt"
        assert view.header["sources"][text.name] == hashlib.sha256(text.read_bytes()).hexdigest()
        assert view.changes and str(tmp_path) not in content.decode()
        view.apply(Mnre(data).read(view.split), view.split)


def test_leaky_regions_make_a_leaky_view(corpus, tmp_path):
    data, cache = corpus
    path = cache / "regions_vg_val.jsonl"
    path.write_text(path.read_text().replace('"leaky": false', '"leaky": true', 1))
    argv = ["align-noise", "--data", str(data), "--ratio", "0.2", "--regions", str(cache)]
    main([*argv, "--out", str(tmp_path / "out")])
    views = [read_view(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "val")]
    assert [view.leaky for view in views] == [False, True]
    assert merged(views[1:]).leaky


def test_command_one_file(corpus, tmp_path):
    out = tmp_path / "half.jsonl"
    main(["fraction", "--data", str(corpus[0]), "--ratio", "0.5", "--out", str(out)])
    assert len(read_view(out).changes) == 60


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("align-noise --ratio 1.5", "not a share"),
        ("align-noise --ratio x", "ratio"),
        ("align-noise --ratio 0.1 --scope test", "no split of --scope test"),
        ("align-noise --ratio 0.1 --out x.jsonl", "2 splits need a folder"),
        ("align-noise --ratio 0.1 --vg reground --scope dev", "needs --grounder"),
        ("aug-noise --ratio 0.1 --regions . --scope dev", "none of regions_vg_val.jsonl"),
        ("kshot --k 0", "above zero"),
        ("kshot --k 2 --seed -1", "not a whole number"),
        ("region-grid --num-grounded -1 --num-detected 0 --regions .", "not a whole number"),
        ("fraction --ratio 0.1 --task mnist", "unknown"),
    ],
)
def test_command_refuses(corpus, tmp_path, monkeypatch, capsys, tool, message):
    monkeypatch.chdir(tmp_path)
    argv = [*tool.split(), "--data", str(corpus[0])]
    if "--out" not in argv:
        argv += ["--out", "out"]
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists() and not (tmp_path / "x.jsonl").exists()


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
