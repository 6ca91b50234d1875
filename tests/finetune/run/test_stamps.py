"""What results and reports say of inputs is what the run loaded: all methods, all tasks."""

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from finetune import registry
from finetune.__main__ import main
from finetune.report import tables
from finetune.run.results import read_result

ARTEFACTS = Path(__file__).parents[1] / "old_runs" / "artefacts.tar.xz"
RESNET = (
    *("--model.vision", "resnet10t", "--model.vision_random", "true"),
    *("--model.vision_width", "2", "--model.image_size", "64"),
)
CAPTIONS = ("--captions", "caption", "--max_caption_length", "30")
SETTINGS = {
    "hvpnet": (*RESNET, "--model.prompt_width", "8"),
    "tmr": (*RESNET, "--model.generated", "none"),
    "camim_tmr": (*RESNET, "--model.generated", "none", "--model.mi_pair", "tf", *CAPTIONS),
    "camim_hvpnet": (*RESNET, "--model.prompt_width", "8", *CAPTIONS),
    "mkgformer": (
        *("--model.vision", "random", "--model.vision_patch", "8", "--model.vg_size", "16"),
        *("--model.od_size", "8", "--model.fusion_layers", "1"),
    ),
    "focalmre": ("--model.vision", "init"),
    "dgfpt": CAPTIONS,
    "retrieval": ("--model.descriptions", "sample"),
}
TEXT_ONLY = {"mtb", "bert_crf"}
READS_REGIONS = {*SETTINGS, "umgf", "mega", "ifaformer"} - {"retrieval"}
CASES = [
    (name, kind)
    for name in registry.METHODS
    if name != "generative"  # test_generative.py asks it
    for kind in sorted(registry.load("methods", name).kinds)
]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The drawn data and the tiny model of the old artefacts; nobody changes them."""
    folder = tmp_path_factory.mktemp("drawn")
    with tarfile.open(ARTEFACTS) as archive:
        members = [
            entry
            for entry in archive
            if entry.name.startswith(("./mnre", "./twitter2017", "./pretraining/model"))
        ]
        archive.extractall(folder, members, filter="data")
    for split in ("train", "val", "test"):  # every tweet shows nothing that a grounder found
        lines = [json.dumps({"tool": "test", "leaky": False})]
        blocks = (folder / "twitter2017" / f"{split.replace('val', 'valid')}.txt").read_text()
        names = [line[6:] for line in blocks.splitlines() if line.startswith("IMGID:")]
        box = {"box": [0, 0, 9, 9], "score": 0.5, "phrase": "x", "kind": "noun"}
        lines += [
            json.dumps({"row": row, "img_id": f"{name}.jpg", "size": [32, 32], "vg": [box]})
            for row, name in enumerate(names)
        ]
        (folder / f"twitter2017/regions_vg_{split}.jsonl").write_text("\n".join(lines) + "\n")
        detected = folder / "twitter2017/regions_od.jsonl"
        before = detected.read_text().splitlines() if detected.is_file() else lines[:1]
        more = [
            json.dumps(
                {
                    "img_id": f"{name}.jpg",
                    "size": [32, 32],
                    "od": [{"box": [0, 0, 9, 9], "score": 0.5, "label": "x"}],
                }
            )
            for name in names
        ]
        detected.write_text("\n".join([*before, *more]) + "\n")
    return folder


@pytest.fixture
def folder(drawn, tmp_path, monkeypatch):
    """A working folder where they lie."""
    for path in drawn.iterdir():
        (tmp_path / path.name).symlink_to(path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FUSION_MRE_CACHE", str(tmp_path / "cache"))


def train(method, kind, *options):
    task = {"relation": "mnre", "entities": "twitter2017"}[kind]
    shutil.rmtree("run", ignore_errors=True)
    places = f"--data {task} --out run --init pretraining/model --optim.epochs 1"
    command = f"train --task {task} --method {method} {places} --max_length 60 --regions {task}"
    main([*command.split(), *SETTINGS.get(method, ()), *options])
    result = json.loads(Path("run/result.json").read_text())
    del result["_crc32"]
    assert result == read_result(Path("run"))
    return result


def said(result):
    """The report's line on what was read, and the audit's."""
    (protocol,) = tables.protocol_table({"run": result}).rows
    audit = [row[1] for row in tables.audit_table({"run": result}).rows]
    return protocol[4], audit


@pytest.mark.parametrize(("method", "kind"), CASES)
def test_with_pictures(folder, method, kind):
    """All are given `--images required` and `--regions DIR`; only those that load them say so."""
    result = train(method, kind)
    text, audit = said(result)
    if method in TEXT_ONLY:
        assert result["images"] == "none" and "picture" not in text and "regions" not in text
        assert text == "text only" and audit == ["none beside the text"]
        return
    assert result["images"] == "required" and text.startswith("picture")
    assert ("regions" in text) == (method in READS_REGIONS)
    assert ("captions" in text) == ("--captions" in SETTINGS.get(method, ()))
    assert "none beside the text" not in audit
    if kind == "entities":
        assert audit == [text]


@pytest.mark.parametrize("method", ("promu", "hvpnet", "tmr", "dgfpt"))
def test_without_pictures(folder, method):
    vision = () if method != "tmr" else ("--model.vision", "none")
    result = train(method, "relation", "--images", "none", *vision)
    assert result["images"] == "none" and not said(result)[0].startswith("picture")


def test_blank_pictures_and_empty_slots(folder):
    result = train("promu", "relation", "--images", "blank")
    assert result["images"] == "blank" and said(result)[0] == "blank pictures"
    assert train("mkgformer", "relation", "--regions", "none")["images"] == "none"
