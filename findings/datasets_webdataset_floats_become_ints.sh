#!/usr/bin/env bash
# datasets 5.2.0, load_dataset("webdataset"): names and types come from the first five samples of the
# first tar, and all later samples are made to fit without a word. A score that is a whole number five
# times (0, 1) is an integer column: the 0.7 of the sixth sample becomes 0. A JSON key that the first
# five lack (most optional ones) is gone, and so is a whole member, such as a .cls beside the .jpg. Among
# the five, a lacking member raises an error; after them it is None. Streaming does the same. Source:
# NUM_EXAMPLES_FOR_FEATURES_INFERENCE in datasets/packaged_modules/webdataset/webdataset.py. The page on
# the format says that columns are detected (huggingface.co/docs/hub/datasets-webdataset).
# Expected: 0.7, or an error, as `load_dataset("json")` widens the column. Seen: 0; with `features=`
# given, the number, the key and the member are there.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datasets==5.2.0 pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1 HF_DATASETS_DISABLE_PROGRESS_BARS=1
"$folder/venv/bin/python" - <<'PY'
import io
import json
import tarfile

import datasets
from datasets import Features, Value, load_dataset

print("datasets", datasets.__version__)
assert datasets.__version__ == "5.2.0"
rows = [{"caption": f"picture {number}", "score": number % 2} for number in range(5)]
rows.append({"caption": "picture 5", "score": 0.7, "orientation": 6})
with tarfile.open("a.tar", "w") as tar, open("a.jsonl", "w") as lines:
    for number, row in enumerate(rows):
        members = {"json": json.dumps(row), "txt": row["caption"]} | ({"cls": "3"} if number == 5 else {})
        for ending, text in members.items():
            header = tarfile.TarInfo(f"{number:06d}.{ending}")
            header.size = len(text)
            tar.addfile(header, io.BytesIO(text.encode()))
        print(json.dumps(row), file=lines)


def sixth(kind="webdataset", file="a.tar", **options):
    read = load_dataset(kind, data_files=file, split="train", **options)
    row = list(read)[5]
    return row.pop("json", row) | {key: row[key] for key in ("cls",) if key in row}


features = Features({
    "__key__": Value("string"), "__url__": Value("string"), "txt": Value("string"),
    "cls": Value("int64"),
    "json": {"caption": Value("string"), "score": Value("float64"), "orientation": Value("int64")},
})  # fmt: skip
seen = {"webdataset": sixth(), "webdataset, streaming": sixth(streaming=True),
        "webdataset, features given": sixth(features=features),
        "json": sixth("json", "a.jsonl")}  # fmt: skip
print("written:", rows[5], "and a member cls, 3")
for name, row in seen.items():
    print(f"{name}: {row}")
cut = {"caption": "picture 5", "score": 0}
assert seen["webdataset"] == seen["webdataset, streaming"] == cut
assert seen["webdataset, features given"] == rows[5] | {"cls": 3}
assert seen["json"] == rows[5]
PY
