"""What runs wrote is read strictly: a damaged file is one line that names it, and never a guess."""

import json

import pytest
from results_by_hand import MEANS, RESULT, SCORES, SEED

from finetune.run.results import Predictions, of_seeds, read_result, read_seed
from finetune.tasks.reading import checked, fits
from shards.files import InputError


def refused(read, *names):
    with pytest.raises(InputError) as caught:
        read()
    message = str(caught.value)
    assert "damaged" in message and "\n" not in message
    for name in names:
        assert name in message, message
    return message


@pytest.fixture
def predictions(tmp_path):
    """Two relations whose scores, and a text with a line separator in it as a tag."""
    path = tmp_path / "pred_test.jsonl"
    Predictions([0, 3], ["a", "x\u2028y"], ["a", "a"], [[0.75, 0.25], [0.5, 0.5]]).write(path)
    return path


def test_round_trip(predictions, tmp_path):
    again = Predictions.read(predictions)
    assert (again.rows, again.gold, again.answers) == ([0, 3], ["a", "x\u2028y"], ["a", "a"])
    assert again.probabilities == [[0.75, 0.25], [0.5, 0.5]] and len(again) == 2
    tags = Predictions([0], [["B-PER", "O"]], [["O"]], None, [{0: "[SEP]"}])
    tags.write(tmp_path / "tags.jsonl")
    assert Predictions.read(tmp_path / "tags.jsonl") == tags


@pytest.mark.parametrize("cut", (1, 2, 10, 30, 60))
def test_cut_predictions(predictions, cut):
    predictions.write_bytes(predictions.read_bytes()[:-cut])
    refused(lambda: Predictions.read(predictions), str(predictions), "line", "evaluate")


@pytest.mark.parametrize(
    "edit",
    [
        lambda record: record.pop("gold"),
        lambda record: record.pop("row"),
        lambda record: record.update(row="3"),
        lambda record: record.update(row=-1),
        lambda record: record.update(row=True),
        lambda record: record.update(row=0),
        lambda record: record.update(gold=7),
        lambda record: record.update(pred=["O"]),
        lambda record: record.update(pred=None),
        lambda record: record.update(scores="0.5"),
        lambda record: record.update(scores=[0.5, "0.5"]),
        lambda record: record.update(scores=[float("nan"), 1.0]),
        lambda record: record.pop("scores"),
        lambda record: record.update(strays={"x": "X"}),
        lambda record: record.update(strays={"0": "B-PER"}),
        lambda record: record.update(strays=[]),
    ],
)
def test_edited_predictions(predictions, edit):
    first, second = predictions.read_text().strip().split("\n")
    record = json.loads(second)
    edit(record)
    predictions.write_text(f"{first}\n{json.dumps(record)}\n")
    refused(lambda: Predictions.read(predictions), str(predictions))


@pytest.mark.parametrize("content", (b"", b"\n", b"[]\n", b"7\n", b"\xff\xfe\n", b"{}\n"))
def test_files_that_hold_something_else(predictions, content):
    predictions.write_bytes(content)
    refused(lambda: Predictions.read(predictions), str(predictions))


def write(folder, content):
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def test_result(tmp_path):
    assert read_result(write(tmp_path / "run", RESULT))["dev"] == MEANS
    assert read_seed(write(tmp_path / "seed", SEED) / "result.json")["dev"] == SCORES
    with pytest.raises(InputError, match="not a finished run"):
        read_result(tmp_path)
    (tmp_path / "seed/metrics.jsonl").touch()
    with pytest.raises(InputError, match=f"one seed of a run; give the run's folder, {tmp_path}$"):
        read_result(tmp_path / "seed")


@pytest.mark.parametrize("value", (7, [7], "missing"), ids=str)
@pytest.mark.parametrize("key", sorted(RESULT.keys() - {"images"}))  # that one is found out anew
def test_edited_results(tmp_path, key, value):
    """Another type under any key, or no such key: never a traceback."""
    content = RESULT | {key: value}
    if value == "missing":
        del content[key]
    refused(lambda: read_result(write(tmp_path / "run", content)), "result.json", key)


@pytest.mark.parametrize("key", SEED)
def test_edited_seeds(tmp_path, key):
    wrong = SEED | {key: [7] if key != "audit" else "x"}
    for content in ({k: v for k, v in SEED.items() if k != key}, wrong):
        folder = write(tmp_path / "seed", content)
        refused(lambda folder=folder: read_seed(folder / "result.json"), "result.json", key)
        run = write(tmp_path / "run", RESULT | {"per_seed": [SEED, content]})
        refused(lambda run=run: read_result(run), "per_seed", key)


@pytest.mark.parametrize("content", ("", "{", "[]", "null", '{"a": 1'))
def test_results_that_are_no_object(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    refused(lambda: read_result(tmp_path), "result.json")


def test_seeds_by_number(tmp_path):
    for seed in (2, 10, 1):
        (tmp_path / f"seed-{seed}").mkdir()
        Predictions([0], [str(seed)], ["x"], None).write(tmp_path / f"seed-{seed}/pred_test.jsonl")
    assert [one.gold for one in of_seeds(tmp_path, "test")] == [["1"], ["2"], ["10"]]


def test_forms():
    assert fits(1, float) and not fits(True, float) and not fits(float("inf"), float)
    assert fits([1, None], list[int | None]) and not fits([1, "2"], list[int | None])
    assert fits([1, 2], tuple[int, int]) and not fits("12", list[str])
    with pytest.raises(InputError, match="there: a: b is missing"):
        checked({"a": {}}, {"a": {"b": int}}, "there")
