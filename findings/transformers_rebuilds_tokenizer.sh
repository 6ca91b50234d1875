#!/usr/bin/env bash
# transformers 5.24.0 with tokenizers 0.23.3: what `save_pretrained` writes of a tokenizer,
# `from_pretrained` does not read back. A class with an `__init__` of its own (BertTokenizer,
# RobertaTokenizer, CLIPTokenizer, ...) takes vocabulary and post-processor from tokenizer.json and
# builds normalizer and pre-tokenizer anew, with that class's own: a rule added by
# `tokenizer.backend_tokenizer.normalizer = ...` stands in the file and is not applied. Nothing warns.
# AutoTokenizer, too, since tokenizer_config.json names the class. Source: `convert_to_native_format`
# in transformers/tokenization_utils_tokenizers.py, whose comment says that pre-tokenizer and decoder
# come from the file; transformers 4.57.6 splits as the file says. (Of deepseek-coder, by the same
# cause: github.com/huggingface/transformers/pull/44463.)
# Expected: the same pieces before and after.
# Seen: handles folded to `user` and `#oslo` kept whole by the tokenizer and by its file read with
# tokenizers or PreTrainedTokenizerFast; `@`, `ann`, `#`, `oslo` by BertTokenizer and AutoTokenizer.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import transformers
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerFast

TEXT = "Bob met @ann in #oslo"
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "bob", "met", "user", "in", "#oslo",
         "@", "ann", "#", "oslo"]  # fmt: skip
tokenizer = BertTokenizer(vocab={word: number for number, word in enumerate(words)})
backend = tokenizer.backend_tokenizer
handles = normalizers.Replace(Regex(r"@\w+"), "user")
backend.normalizer = normalizers.Sequence([handles, backend.normalizer])
backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer.save_pretrained("saved")

print("transformers", transformers.__version__)
pieces = {"as made": tokenizer.tokenize(TEXT)}
file = Tokenizer.from_file("saved/tokenizer.json")
pieces["tokenizers"] = file.encode(TEXT, add_special_tokens=False).tokens
pieces["PreTrainedTokenizerFast"] = PreTrainedTokenizerFast.from_pretrained("saved").tokenize(TEXT)
pieces["BertTokenizer"] = BertTokenizer.from_pretrained("saved").tokenize(TEXT)
pieces["AutoTokenizer"] = AutoTokenizer.from_pretrained("saved").tokenize(TEXT)
for name, tokens in pieces.items():
    print(f"{name}: {' '.join(tokens)}")

assert transformers.__version__ == "5.24.0"
for name in ("as made", "tokenizers", "PreTrainedTokenizerFast"):
    assert pieces[name] == ["bob", "met", "user", "in", "#oslo"]
for name in ("BertTokenizer", "AutoTokenizer"):
    assert pieces[name] == ["bob", "met", "@", "ann", "in", "#", "oslo"]
PY
