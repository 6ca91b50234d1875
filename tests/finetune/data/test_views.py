"""View manifests and the command that writes them: equal bytes, one line for what is wrong."""

import hashlib
import json
from fractions import Fraction

import pytest
from drawn import SIZE, make_regions, make_rows

from finetune.data.views import main as views_main
from finetune.inputs.view import Change, View, merged, read_view, write_view
from finetune.tasks.base import Row
from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, read_regions, write_regions
from shards.command import exit_on_input_error
from shards.files import InputError

main = exit_on_input_error(views_main)

RATIOS = [Fraction(text) for text in ("0.05", "0.1", "0.2", "0.5", "1")]


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
    lines = [json.loads(line) for line in path.read_text().splitlines()[1:]]
    assert all(line.pop("_crc32") for line in lines)
    assert lines == [
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
    dropped = View("val", {0: Change(no_image=True)}, {"tool": "image-drop"})
    for views, picture in (([dropped, wrong], "b.jpg"), ([wrong, dropped], None)):
        later = rows  # as rows are read: one view after the other
        for view in views:
            later = view.apply(later, "val")
        assert merged(views).apply(rows, "val")[0].image_id == later[0].image_id == picture
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
    write_regions(path, {"leaky": True}, read_regions(path).values)
    argv = ["align-noise", "--data", str(data), "--ratio", "0.2", "--regions", str(cache)]
    main([*argv, "--out", str(tmp_path / "out")])
    views = [read_view(tmp_path / "out" / f"{split}.jsonl") for split in ("train", "val")]
    assert [view.leaky for view in views] == [False, True]
    assert merged(views[1:]).leaky


def test_command_one_file(corpus, tmp_path):
    out = tmp_path / "half.jsonl"
    main(["fraction", "--data", str(corpus[0]), "--ratio", "0.5", "--out", str(out)])
    assert len(read_view(out).changes) == 60


def test_nothing_but_a_view_is_replaced(corpus, capsys):
    """--out DATA where a task's own files are called as views are."""
    data = corpus[0].parent / "mine"
    data.mkdir()
    row = {"tokens": ["a", "b"], "head": [0, 1], "tail": [1, 2], "relation": "r", "image": None}
    for split in ("train", "val"):
        (data / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    command = f"fraction --task relations --data {data} --ratio 0 --out"
    for _ in range(2):  # a view may be drawn again
        main([*command.split(), str(data / "views")])
    with pytest.raises(SystemExit):
        main([*command.split(), str(data)])
    assert f"{data}/train.jsonl: exists and is no view" in capsys.readouterr().err
    assert json.loads((data / "val.jsonl").read_text()) == row


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("align-noise --ratio 1.5", "not a share"),
        ("align-noise --ratio x", "ratio"),
        ("align-noise --ratio 0.1 --scope test", "no split of --scope test"),
        ("align-noise --ratio 0.1 --out x.jsonl", "2 splits need a folder"),
        ("align-noise --ratio 0.1 --vg reground --scope dev", "needs --grounder"),
        ("aug-noise --ratio 0.1 --regions . --scope dev", "none of regions_vg_val.jsonl"),
        ("kshot --k 0", "--k 0: must be a positive"),
        ("kshot --k 2 --seed -1", "--seed -1: must not be negative"),
        (
            "region-grid --num-grounded -1 --num-detected 0 --regions .",
            "--num_grounded -1: must not be negative",
        ),
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
