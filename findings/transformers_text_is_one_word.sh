#!/usr/bin/env bash
# transformers 5.24.0, DataCollatorForLanguageModeling(whole_word_mask=True): words are told apart by gaps
# between the offsets of their pieces (`_calc_word_ids_and_prob_mask` in transformers/data/data_collator.py),
# not by the tokenizer's `word_ids()`. Where a piece's offsets take in the blank before it (DeBERTa-v2 and
# -v3, GPT-2, GPT-NeoX), or no blank is written (BERT's Chinese characters), there is no gap: the whole
# text is one word, masked as a whole in 15 % of cases and not at all in the others. Hence most rows teach
# nothing, and the rest ask for a text of which nothing is shown; nothing warns, and the share of masked
# pieces is right. BERT's comma goes with the word before it. XLM-RoBERTa's, and BERT's Latin, words are
# split. The reference says "whole words instead of individual tokens"; the code warns of slow tokenizers
# only, which have no offsets (huggingface.co/docs/transformers/main_classes/data_collator).
# Expected: words as `word_ids()` has them, 15 % of each text. Seen, of 400 rows of a text of 12 words: 0 or
# 12 of them masked, always, by four tokenizers of six.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.24.0 tokenizers==0.23.3 numpy==2.4.6
"$folder/venv/bin/python" - 2> "$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import numpy as np
import transformers
from tokenizers import pre_tokenizers
from transformers import (
    BertTokenizer,
    DataCollatorForLanguageModeling,
    DebertaV2Tokenizer,
    GPT2Tokenizer,
    GPTNeoXTokenizer,
    XLMRobertaTokenizer,
)

print("transformers", transformers.__version__)
assert transformers.__version__ == "5.24.0"
ROWS, LATIN, CHINESE = 400, "ann met bob in oslo and ann saw bob in rome too", "我在北京看見他和她的小狗"
words = sorted(set(LATIN.split()))
special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
bert = BertTokenizer(vocab={piece: number for number, piece in enumerate(
    ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *CHINESE])})  # fmt: skip
letters = {piece: number for number, piece in enumerate(special + pre_tokenizers.ByteLevel.alphabet())}
names = dict(mask_token="<mask>", pad_token="<pad>", unk_token="<unk>")
pieces = [(f"▁{word}", -1.0) for word in words]
tokenizers = {
    "BERT, Latin": (bert, LATIN),
    "BERT, Chinese": (bert, CHINESE),
    "XLM-RoBERTa": (XLMRobertaTokenizer(vocab=[(s, 0.0) for s in special] + pieces), LATIN),
    "DeBERTa-v2": (DebertaV2Tokenizer(
        vocab=[(s, 0.0) for s in ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")] + pieces), LATIN),
    "GPT-2": (GPT2Tokenizer(vocab=letters, merges=[], **names), LATIN),
    "GPT-NeoX": (GPTNeoXTokenizer(vocab=letters, merges=[], **names), LATIN),
}  # fmt: skip


def masked_words(tokenizer, text):
    """How many words `word_ids()` counts, and in each row how many of them are masked."""
    row = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True)
    assert tokenizer.unk_token_id not in row["input_ids"]
    collator = DataCollatorForLanguageModeling(tokenizer, whole_word_mask=True, return_tensors="np", seed=0)
    masked = collator([dict(row) for _ in range(ROWS)])["labels"] != -100
    owners = np.array([-1 if word is None else word for word in row.word_ids()])
    by_word = np.stack([masked[:, owners == word].mean(1) for word in range(owners.max() + 1)], axis=1)
    assert np.isin(by_word, (0, 1)).all()  # at least no word is cut
    return by_word.shape[1], by_word.sum(1)


whole = {}
for name, (tokenizer, text) in tokenizers.items():
    count, masked = masked_words(tokenizer, text)
    assert count == 12 and 0.11 < masked.mean() / count < 0.19
    whole[name] = bool(np.isin(masked, (0, count)).all())
    print(f"{name}: {masked.mean() / count:.0%} of the words; rows with none {np.mean(masked == 0):.0%}, "
          f"with all {np.mean(masked == count):.0%}")  # fmt: skip
assert whole == {"BERT, Latin": False, "BERT, Chinese": True, "XLM-RoBERTa": False,
                 "DeBERTa-v2": True, "GPT-2": True, "GPT-NeoX": True}  # fmt: skip
vocabulary = bert.get_vocab() | {",": bert.vocab_size}
row = BertTokenizer(vocab=vocabulary)("ann, bob", return_offsets_mapping=True, return_special_tokens_mask=True)
seen, _ = DataCollatorForLanguageModeling._calc_word_ids_and_prob_mask(
    np.array([row["offset_mapping"]]), np.array([row["special_tokens_mask"]])
)
print("'ann, bob':", row.word_ids()[1:-1], "by the tokenizer,", seen[0, 1:-1].tolist(), "by the collator")
assert row.word_ids()[1:-1] == [0, 1, 2] and seen[0, 1:-1].tolist() == [1, 1, 2]
PY
