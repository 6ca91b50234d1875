"""Relations that training never saw, on the sample: five of nine in training, four by description.

Slow; starts from the checkpoint of a finished quickstart, `./quickstart` or $FUSION_MRE_QUICKSTART.
"""

import ast
import json
import os
from pathlib import Path

import pytest

from finetune.__main__ import main
from finetune.methods.retrieval.descriptions import read_descriptions

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = Path(os.environ.get("FUSION_MRE_QUICKSTART", ROOT / "quickstart"))
UNSEEN = ("/per/per/peer", "/per/org/leader_of", "/per/org/member_of", "/per/misc/author_of")


def split_by_relation(source: Path, out: Path) -> None:
    """`out`: the sample without the rows of `UNSEEN`; of those of test, `posts.jsonl`."""
    relations = json.loads((source / "ours_rel2id.json").read_text())
    seen = [name for name in relations if name not in UNSEEN]
    (out / "txt").mkdir(parents=True)
    (out / "ours_rel2id.json").write_text(json.dumps({name: i for i, name in enumerate(seen)}))
    (out / "img_org").symlink_to((source / "img_org").resolve())
    posts = []
    for split in ("train", "val", "test"):
        lines = (source / f"txt/ours_{split}.txt").read_text().splitlines(keepends=True)
        rows = [ast.literal_eval(line) for line in lines]
        rest = [line for line, row in zip(lines, rows, strict=True) if row["relation"] in seen]
        (out / f"txt/ours_{split}.txt").write_text("".join(rest))
        posts = [row for row in rows if row["relation"] in UNSEEN]
    lines = [
        json.dumps(
            {
                "id": row["relation"],
                "tokens": row["token"],
                "head": row["h"]["pos"],
                "tail": row["t"]["pos"],
                "image": str((source / "img_org/test" / row["img_id"]).resolve()),
            }
        )
        for row in posts
    ]
    (out / "posts.jsonl").write_text("\n".join(lines) + "\n")
    texts = read_descriptions("sample")
    table = "".join(f"{name}\t{texts[name]}\n" for name in UNSEEN)
    (out / "unseen.tsv").write_text("relation\tdescription\n" + table)


@pytest.mark.slow
def test_four_of_nine_relations_are_never_seen(tmp_path):
    model = QUICKSTART / "pretrain" / "model"
    if not model.is_dir():
        pytest.skip(f"no checkpoint at {model}: run launch/quickstart.sh")
    data, run, answers = tmp_path / "data", tmp_path / "run", tmp_path / "answers.jsonl"
    split_by_relation(QUICKSTART / "corpora" / "mnre", data)
    main(
        f"train --config sample/mnre --task mnre --method retrieval --model.descriptions sample "
        f"--optim.lr 3e-4 --optim.epochs 8 --data {data} --init {model} --out {run}".split()
    )
    options = ["--input", f"{data}/posts.jsonl", "--relations", f"{data}/unseen.tsv"]
    main(["predict", str(run), *options, "--out", str(answers)])
    lines = [json.loads(line) for line in answers.read_text().splitlines()]
    assert {line["id"] for line in lines} == set(UNSEEN)
    accuracy = 100 * sum(line["id"] == line["relation"] for line in lines) / len(lines)
    print(f"accuracy among the four unseen: {accuracy:.1f} of {len(lines)} rows; chance 25.0")
    assert accuracy >= 25 + 25
