"""PROMU's and CAMIM's studies, in small, on a sample of a few rows: every cell has a figure.

bash tests/run.sh -m slow tests/e2e/test_studies.py
"""

import json

import published
import pytest
import yaml

from finetune.__main__ import main as finetune
from finetune.report.study_cells import read_study
from pretrain.__main__ import main as pretrain
from shards.__main__ import main as shards

SMALL = {
    "optim": {"steps": 2, "warmup_ratio": 0.0},
    "batch": {"global_size": 8},
    "data": {"workers": 0},
    "log": {"validation_pairs": 8},
    "engine": {"precision": "fp32"},
}


def words(text: str, **options: object) -> list[str]:
    return [*text.split(), *(f"--{key}={value}" for key, value in options.items())]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """`SAMPLE`, shards with objects and labels, a prompter, and settings of a pre-training."""
    work = tmp_path_factory.mktemp("world")
    published.write_corpora(work, rows=(24, 12, 12))
    news = work / "SAMPLE/visual_news"
    shards(words("build newsclippings", **{
        "news-clippings": work / "SAMPLE/news_clippings", "visual-news": news, "split": "train",
        "out": work / "train"}))  # fmt: skip
    shards(words(f"detect {work}/train --detector file", boxes=news / "objects.jsonl"))
    shards(words(f"nouns {work}/train --tagger lexicon --size 30", out=work / "entities.tsv"))
    (work / "small.yaml").write_text(yaml.safe_dump(SMALL | {
        "data": {"workers": 0, "train": str(work / "train")},
        "prompter": {"source": str(work / "prompter/model"),
                     "entities": str(work / "entities.tsv"),
                     "relations": str(work / "SAMPLE/relations.tsv")},
    }))  # fmt: skip
    configs = f"--config tiny --config {work}/small.yaml"
    pretrain(words(f"{configs} --config prompter", run_dir=work / "prompter"))
    pretrain(words(f"label {work}/train", prompter=work / "prompter/model"))
    pretrain(words(f"{configs} --model.init {work}/prompter/model", run_dir=work / "full"))
    (work / "corpora").mkdir()
    for task, folder in {"mnre": "SAMPLE/mnre", "twitter2017": "TWITTER"}.items():
        (work / "corpora" / task).symlink_to(work / folder)
    return work


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "columns"),
    [
        ("promu-table1", ["Twitter-2017", "MRE"]),
        ("promu-table2", ["Twitter-2017", "MRE"]),
        ("promu-table3", ["Twitter-2017", "MRE"]),
        ("camim-table1", []),
        ("camim-table2", ["QWenVL-Plus"]),
        ("camim-figure4a", []),
        ("camim-figure4b", []),
        ("camim-figure4c", []),
    ],
)
def test_every_cell_has_a_figure(study, columns, world, tmp_path):
    content = read_study(study)
    options = {"model": world / "full/model", "out": tmp_path, "seeds": 1}
    if "pretrain" in content:
        options |= {"data": world / "corpora", "pretraining": world / "full/config.yaml"}
    else:
        options["data"] = world / "SAMPLE/mnre"
    chosen = ["--columns", *columns] if columns else []
    finetune(["study", study, "--small", *words("", **options), *chosen])
    cells = json.loads((tmp_path / "study.json").read_text())["cells"]
    table = next(iter(content["tables"].values()))
    expected = {
        (run, column)
        for column in columns or table
        for run in (table[column] or {}).get("only", content["runs"])
    }
    assert {(cell["run"], cell["column"]) for cell in cells} == expected
    assert all(0 <= cell["test"]["f1"]["mean"] <= 100 for cell in cells)
    for name in content.get("pretrain", {}):
        assert (tmp_path / "pretrain" / name / "model/config.json").is_file()
