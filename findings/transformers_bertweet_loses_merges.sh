#!/usr/bin/env bash
# transformers 5.24.0: a BERTweet tokenizer that `save_pretrained` wrote and `from_pretrained` reads
# splits every word into single letters, nearly all unknown. `bpe.codes` as published has
# `left right count` a line; the class drops the last word of each line when it reads, and writes
# `left right` without a count: read again, every merge is one symbol that no pair ever equals.
# Nothing warns; vocabulary and numbers are the same. A fine-tuned BERTweet that was saved with its
# tokenizer is such a directory. Source: `BertweetTokenizer.__init__` and `save_vocabulary` in
# transformers/models/bertweet/tokenization_bertweet.py. (4.57.6 copies the file, as published.)
# Expected: the same pieces before and after.
# Seen: `he@@ llo a` before, `h@@ e@@ l@@ l@@ o a` after; ids 4 5 7 before, 3 3 3 3 3 7 after.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0
cd "$folder"
mkdir published
printf 'he@@ 5\nllo 4\nhello 3\na 2\n' > published/vocab.txt
printf 'l l 9\nll o</w> 8\nh e 7\n' > published/bpe.codes
"$folder/venv/bin/python" - <<'PY'
import transformers
from transformers import BertweetTokenizer

published = BertweetTokenizer.from_pretrained("published")
published.save_pretrained("saved")
saved = BertweetTokenizer.from_pretrained("saved")
print("transformers", transformers.__version__)
for name, tokenizer in {"published": published, "saved": saved}.items():
    ids = tokenizer("hello a", add_special_tokens=False)["input_ids"]
    print(f"{name}: {' '.join(tokenizer.tokenize('hello a'))} {ids} merges {tokenizer.bpe_ranks}")

assert transformers.__version__ == "5.24.0"
assert published.get_vocab() == saved.get_vocab()
assert published.tokenize("hello a") == ["he@@", "llo", "a"]
assert saved.tokenize("hello a") == ["h@@", "e@@", "l@@", "l@@", "o", "a"]
assert [len(merge) for merge in saved.bpe_ranks] == [1, 1, 1]
PY
