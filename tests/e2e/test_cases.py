"""The lent small inputs that once gave wrong answers, each with its right one; skipped where they
are not there. Those that are runs rather than files have their tests `ELSEWHERE`.
"""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from finetune.__main__ import main as finetune
from finetune.data.own_data import convert
from finetune.tasks.posts import BadPost, parse_line
from pretrain.__main__ import main as pretrain
from shards.__main__ import main as shards
from shards.files import InputError
from shards.images import RejectedImage, decoded
from shards.stream import ShardReader
from shards.tables import read_table

TESTS = Path(__file__).parents[1]
ELSEWHERE = {
    2: "finetune/run/test_provenance.py::test_evaluate_on_other_data",
    5: "pretrain/test_resume.py::test_a_first_start_that_failed_leaves_no_tokenizer",
    6: "finetune/inputs/test_regions.py::test_rows_in_another_order_are_refused",
    9: "pretrain/test_launched.py::test_one_process_is_alone_whatever_the_shell_says",
    14: "shards/test_write.py::test_a_finished_build_is_not_called_one_of_other_input",
    15: "finetune/predict/test_predict.py::test_answers_of_another_model_are_not_finished",
    16: "pretrain/test_resume.py::test_shards_that_were_rebuilt_under_a_run_are_refused_by_name",
    19: "finetune/data/test_regions.py::test_resumable",
}
"""Number of a case that is a sequence of commands -> the test that runs its like."""


@pytest.fixture
def case(shared_data):
    """A case's folder by its number."""

    def find(number: int) -> Path:
        folders = list((shared_data.parent / "cases").glob(f"{number:02}_*"))
        if not folders:
            pytest.skip(f"no case {number} beside {shared_data}")
        return folders[0]

    return find


def test_every_case_has_its_test(shared_data):
    own = {int(name) for name in re.findall(r"^def test_(\d\d)_", Path(__file__).read_text(), re.M)}
    assert not own & ELSEWHERE.keys()
    for place in ELSEWHERE.values():
        path, _, name = place.partition("::")
        assert f"\ndef {name}(" in (TESTS / path).read_text(), place
    lent = {int(path.name[:2]) for path in (shared_data.parent / "cases").glob("[0-9][0-9]_*")}
    assert lent <= own | ELSEWHERE.keys()


def test_01_other_rows_are_no_finished_run(case, tmp_path, capsys):
    data, model = shutil.copytree(case(1) / "data", tmp_path / "d"), write_model(tmp_path / "m")
    for path in (data, *data.rglob("*")):  # lent read-only
        path.chmod(0o755)
    train, out = data / "txt/ours_train.txt", tmp_path / "r"
    words = f"train --task mnre --method mtb --data {data} --images none --optim.epochs 1"
    command = [*words.split(), "--architecture", str(model), "--out", str(out)]
    finetune(command)
    before = (out / "result.json").read_bytes()
    train.write_text("".join(train.read_text().splitlines(keepends=True)[:20]))
    for more in ([], ["--seeds", "1,2"]):
        with pytest.raises(SystemExit, match="2"):
            finetune([*command, *more])
        assert f"{train}: changed since" in capsys.readouterr().err
    assert (out / "result.json").read_bytes() == before


def test_18_the_test_split_is_read_first(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("finetune.run.train.SeedRun.one_epoch", lambda run: pytest.fail("trained"))
    command = f"train --task relations --method mtb --data {case(18)}/data --images none"
    with pytest.raises(SystemExit, match="2"):
        finetune([*command.split(), "--init", str(write_model(tmp_path / "m")),
                  "--out", str(tmp_path / "r")])  # fmt: skip
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "test.jsonl" in error and "'zzz'" in error, error
    assert not list(tmp_path.glob("r/seed-*/*"))


def test_03_pictures_show_what_a_viewer_shows(case):
    def pixels(name):
        return np.asarray(decoded(case(3) / name)).astype(int)

    plain, lying = pixels("plain.jpg"), pixels("exif6.jpg")
    assert np.abs(np.rot90(plain, -1) - lying).mean() < 2
    for name in ("rgba.png", "la.png", "pal_trans.png"):
        assert (pixels(name)[0, 0] == 255).all(), name  # nothing is there: white
    grey = pixels("gray16.png")
    assert grey.min() == 0 and grey.max() == 255 and abs(grey.mean() - 127) < 3
    with pytest.raises(RejectedImage, match="absurd size"):
        decoded(case(3) / "bomb.png")


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [("commas.csv", 2, [2]), ("quote.csv", 7, [3]), ("bigq.csv", 1999, [102])],
)
def test_04_each_row_is_accepted_or_refused(case, name, accepted, refused):
    table = read_table(case(4) / name, ("image", "caption"))
    assert [row.line for row in table.refused] == refused
    assert len(table.rows) - len(refused) == accepted


def test_07_offsets_are_compared_with_words(case):
    with pytest.raises(InputError, match=r"'b m'.*'Bob' in utf-16.*--offsets utf-16"):
        convert(case(7) / "convert.jsonl", "entities")
    (row,) = convert(case(7) / "convert.jsonl", "entities", offsets="utf-16")
    assert [word for word, tag in zip(row["tokens"], row["tags"], strict=True) if tag != "O"] == [
        "Bob"
    ]


def test_08_half_a_character_is_refused_in_its_place(case):
    lines = (case(8) / "surr.jsonl").read_bytes().splitlines()
    posts = [parse_line(line, Path(), "mnre") for line in lines]
    assert [isinstance(post, BadPost) for post in posts] == [False, True, True, False, True]
    assert [post.id for post in posts] == [1, 2, 3, 4, None]
    with pytest.raises(InputError, match=r"line 1: text holds half a character"):
        convert(case(8) / "convert.jsonl", "relations")


def test_10_a_table_that_nothing_reads_is_refused(case, tmp_path, capsys):
    with pytest.raises(SystemExit):
        pretrain(["convert", str(case(10) / "model"), str(tmp_path / "out")])
    assert "relative_key" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_11_a_token_without_a_row_is_refused(case, tmp_path, capsys):
    folder, out = case(11), tmp_path / "run"
    command = f"train --task entities --method bert_crf --data {folder}/data --images none"
    with pytest.raises(SystemExit):
        finetune([*command.split(), "--init", str(folder / "model"), "--out", str(out)])
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith(f"error: {folder}/model: ") and "token" in message, message


def test_12_a_head_that_looks_like_a_span_is_words(case):
    rows = convert(case(12) / "posts.jsonl", "relations")
    assert ["".join(row["tokens"][slice(*row["head"])]) for row in rows] == ["10:30", "2:1"]


def test_13_one_picture_has_one_name(case, tmp_path, capsys):
    content = (case(3) / "plain.jpg").read_bytes()
    (tmp_path / "1.jpg").write_bytes(content)
    places = ["--images", str(tmp_path), "--captions", str(case(13) / "two.csv")]
    with pytest.raises(SystemExit):
        shards(["build", "captions", *places, "--mismatch", "1", "--out", str(tmp_path / "out")])
    assert "too few different pictures" in capsys.readouterr().err


def test_17_boxes_lie_down_with_their_picture(case, tmp_path):
    """Given in the pixels of the file: the left half of what lies on its side is its upper half."""
    table, out = case(17) / "ex1.csv", tmp_path / "out"
    places = ["--images", str(case(17)), "--captions", str(table), "--out", str(out)]
    shards(["build", "captions", *places, "--mismatch", "0"])
    shards(["detect", str(out), "--detector", "file", "--boxes", str(case(17) / "bx.jsonl")])
    reader = ShardReader(out, columns=("objects",))
    samples = {sample.meta.image_id: sample for sample in reader.samples(0)}
    boxes = {name: sample.objects[0].box for name, sample in samples.items()}
    assert boxes["plain.jpg"] == pytest.approx((0, 0, 60, 80))
    assert samples["exif6.jpg"].meta.size == (80, 120)
    assert boxes["exif6.jpg"] == pytest.approx((0, 0, 80, 60))
