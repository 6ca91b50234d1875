"""The commands of README.md, in order, on what the publishers of weights and corpora ship.

The commands are README's texts; `REPLACED` and `APPENDED` alone make them small. `ELSEWHERE` says
which test runs a command that is not run here. The whole road (BERT-base, ViT-B/16, every command)
is slow; a cut of it, with a tiny BERT and ViT of the same names, is among the fast tests: by an
interpreter whose imports are made (`warm.py`), where the slow one imports anew for each command.

    bash tests/run.sh -m slow tests/e2e/test_real_road.py -s      # FUSION_MRE_ROAD=DIR keeps it
"""

import importlib.util
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import published
import pytest
import yaml
from readme import README, ROOT, Step, steps

BIN = Path(sys.executable).parent
BERT, VIT = "google-bert/bert-base-uncased", "vit_base_patch16_224.orig_in21k"

ELSEWHERE = {
    "bash launch/quickstart.sh": "tests/e2e/test_quickstart.py",
    "bash tests/run.sh": "runs these tests",
    "python -m finetune predict runs/retrieval": "tests/e2e/test_zero_shot_relations.py",
    "python -m finetune serve": "tests/finetune/predict/test_serve.py; needs gradio, does not end",
}
"""Start of a command -> the test that runs it, or why none does."""

IN_PROSE = {
    "fusion-mre": "tests/repo/test_startup.py",
    "bash launch/pretrain.sh": "tests/e2e/test_pretraining.py",
    "torchrun -m pretrain": "tests/e2e/test_pretraining.py",
    "python -m pretrain --help": "tests/repo/test_startup.py",
    "python -m pretrain doctor": "tests/launch/test_doctor.py",
    "python -m finetune regions build": "tests/finetune/data/test_regions.py",
}
"""Start of a command between backquotes, not in a block -> the test that runs it."""

SLOW_ONLY = (
    "python -m finetune study",
    "python -m finetune train --task mnre --method mtb",
    "python -m finetune train …",
    "python -m finetune train --task twitter2017",
    "python -m finetune report",
    "python -m finetune predict runs/promu --ner",
    "python -m pretrain convert SRC",
    "python -m shards verify",
)
"""Start of a command -> left out of the fast cut: other tests run it too, or it follows one."""

REPLACED = {
    "deepspeed launch": "deepspeed --num_accelerators 2 launch",
    " [--vision TIMM]": "",
    "--seeds 1,2,3": "--seeds 1",
    "train … ": "train --task mnre --data MNRE --init BERT_DIR --images none --out runs/count ",
    "study league": "study ./league.yaml",
    "study protocols": "study ./protocols.yaml",
}
APPENDED = {
    "python -m shards nouns": ""
    if importlib.util.find_spec("en_core_web_sm")
    else "--tagger lexicon",
    "deepspeed": "--batch.global_size 4 --engine.precision fp32 --data.workers 0 --optim.steps 3",
    "python -m finetune train": "--optim.epochs 1 --optim.global_batch_size 8",
    "python -m finetune study": "--seeds 1 --model SMALL_MODEL",
}
"""Start of a command -> options after it: the last one given wins."""

STUDY_SIZE = {"optim.epochs": 1, "optim.min_steps": 1, "fraction": 0.5}
"""What every run of a study is set to."""


def starts(command: str, table) -> str | None:
    """The entry of a table that a command starts with."""
    return next((start for start in table if command.startswith(start)), None)


def shrunk(text: str) -> str:
    """A step's text with both tables applied."""
    for old, new in REPLACED.items():
        text = text.replace(old, new)
    for start, options in APPENDED.items():
        text = re.sub(rf"({re.escape(start)}\b[^;\n]*)", rf"\1 {options}", text)
    return text


@pytest.fixture(scope="module")
def lent() -> Path:
    return Path(os.environ.get("FUSION_MRE_DATA", ROOT.parent / "shared/data"))


def prepare(work: Path, *, tiny: bool, detector: Path, programs: Path = BIN) -> None:
    """Everything that README's commands name, in `work`."""
    work.mkdir(parents=True, exist_ok=True)
    words = published.write_corpora(work, rows=(24, 12, 12))
    published.write_own_data(work)
    published.write_detector(work / "yolo11n.pt", detector, programs / "python")
    if tiny:  # folders of the hub's names: the commands find them first
        published.write_bert(work / BERT, words, tiny=True)
        published.write_vit(work / VIT, tiny=True)
        (work / "BERT_DIR").symlink_to(BERT)
    else:
        folder = published.hub_folder(work / "hf", BERT)
        published.write_bert(folder, words, tiny=False)
        (work / "BERT_DIR").symlink_to(folder)
        published.write_vit(published.hub_folder(work / "hf", f"timm/{VIT}"), tiny=False)
        published.write_bert(work / "small_bert", words, tiny=True)
        published.write_vit(work / "small_vit", tiny=True)
    (work / "launch").symlink_to(ROOT / "launch")
    (work / "SRC").symlink_to("runs/paper")
    (work / "MODEL_DIR").symlink_to("runs/paper/model")
    for name in ("league", "protocols"):
        study = yaml.safe_load((ROOT / f"finetune/configs/studies/{name}.yaml").read_text())
        study["runs"] = {key: run | STUDY_SIZE for key, run in study["runs"].items()}
        (work / f"{name}.yaml").write_text(yaml.safe_dump(study, sort_keys=False))


def call(text: str, work: Path, programs: Path = BIN) -> None:
    """Run a step in `work`; say what it took: on a busy machine CPU seconds tell more."""
    environment = os.environ | {
        "PATH": os.pathsep.join([str(programs), str(BIN), os.environ["PATH"]]),
        "PYTHONPATH": str(ROOT),
        "HF_HOME": str(work / "hf"),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    before, used = time.monotonic(), os.times()
    result = subprocess.run(
        ["bash", "-euc", text], cwd=work, env=environment, capture_output=True, text=True
    )
    after = os.times()
    cpu = after.children_user + after.children_system - used.children_user - used.children_system
    print(f"{time.monotonic() - before:6.1f} s, CPU {cpu:5.1f} s  {text}", flush=True)
    said = f"{text}\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
    assert result.returncode == 0, said
    assert "Traceback" not in result.stderr, said


def walk(road: list[Step], work: Path, programs: Path = BIN) -> None:
    print(f"\n{work}\nreplaced: {REPLACED}\nappended: {APPENDED}\nstudies: {STUDY_SIZE}")
    for step in road:
        call(shrunk(step.text), work, programs)


def here() -> list[Step]:
    """The steps that this file runs."""
    return [step for step in steps() if not any(starts(c, ELSEWHERE) for c in step.commands)]


def work_folder(tmp_path: Path, name: str) -> Path:
    kept = os.environ.get("FUSION_MRE_ROAD")
    return Path(kept) / name if kept else tmp_path


def test_a_cut_of_the_road(lent, tmp_path, interpreter):
    work = work_folder(tmp_path, "cut")
    detector = lent / "weights/yolov8n.pt"
    prepare(work, tiny=True, detector=detector, programs=interpreter.path)
    cut = [step for step in here() if not any(starts(c, SLOW_ONLY) for c in step.commands)]
    walk(cut, work, interpreter.path)


@pytest.mark.slow
def test_the_whole_road(lent, tmp_path):
    work = work_folder(tmp_path, "whole")
    prepare(work, tiny=False, detector=lent / "weights/yolov8n.pt")
    call("python -m pretrain convert small_bert SMALL_MODEL --vision small_vit", work)
    walk(here(), work)


def test_every_command_runs_somewhere():
    """A command that is new in README runs on the road by itself, if it is a step of a shell
    block; the tables name no command that README has no more."""
    commands = [command for step in steps() for command in step.commands]
    assert all(step.commands for step in steps()), [s.text for s in steps() if not s.commands]
    assert len(commands) > 25
    for start in (*ELSEWHERE, *SLOW_ONLY, *APPENDED):
        assert starts(start, [c[: len(start)] for c in commands]), f"README has no {start!r}"
    text = "\n".join(step.text for step in steps())
    assert not [old for old in REPLACED if old.strip() not in text]
    for reason in (*ELSEWHERE.values(), *IN_PROSE.values()):
        test = re.match(r"tests/\S+\.py", reason)
        assert not test or (ROOT / test[0]).is_file(), reason


def test_every_command_in_prose_runs_somewhere():
    """Each is a step of a block, or has its test; no entry is left over."""
    prose = re.sub(r"^```.*?^```$", "", README.read_text(), flags=re.M | re.S)
    words = r"(?:python -m|deepspeed|torchrun|bash|fusion-mre) "
    named = [" ".join(text.split()) for text in re.findall(rf"`({words}[^`]*)`", prose)]
    blocks = [command for step in steps() for command in step.commands]
    for command in named:
        in_block = any(block.startswith(command) for block in blocks)
        assert in_block or starts(command, IN_PROSE | ELSEWHERE), f"no test runs `{command}`"
    assert not [start for start in IN_PROSE if not starts(start, [n[: len(start)] for n in named])]
