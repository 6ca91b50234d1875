#!/usr/bin/env bash
# tokenizers 0.23.3, BertNormalizer and an added token with lstrip, rstrip and normalized (a mark around
# an entity, say, so that "a [E1] b" and "a[E1]b" are the same pieces): beside a Chinese character, its
# offsets cover that character, too. BertNormalizer puts blanks around such characters and lets them lie
# at the character's own place in the text; the mark strips these blanks, and takes their place with
# them. The character keeps its own piece, so two pieces claim it, and what the mark's offsets cut out
# of the text is "東 [E1] 京". Beside Latin letters, with normalized=False, or without stripping, they are
# the mark's and the text's blanks. The reference says that lstrip and rstrip strip whitespace beside
# the token (huggingface.co/docs/tokenizers/api/added-tokens), and of handle_chinese_chars that it puts
# spaces around each character (huggingface.co/docs/tokenizers/api/normalizers).
# Expected: no character of the text under two pieces. Seen: two, of 東 [E1] 京 and of 東[E1]京.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tokenizers==0.23.3
"$folder/venv/bin/python" - <<'PY'
import tokenizers
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers

print("tokenizers", tokenizers.__version__)
assert tokenizers.__version__ == "0.23.3"


def covered(text, normalized, strip):
    """The part of the text that the mark's offsets cover, and the marks' piece at every character."""
    words = ["[UNK]", "東", "京", "bob", "ann"]
    tokenizer = Tokenizer(models.WordPiece({w: n for n, w in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    mark = AddedToken("[E1]", lstrip=strip, rstrip=strip, normalized=normalized)
    tokenizer.add_tokens([mark])
    encoding = tokenizer.encode(text)
    assert encoding.ids == [words.index(text.split("[")[0].strip()), len(words),
                            words.index(text.split("]")[1].strip())]  # fmt: skip
    (start, end), letters = encoding.offsets[1], (encoding.offsets[0], encoding.offsets[2])
    shared = sum(max(0, min(end, b) - max(start, a)) for a, b in letters)
    return text[start:end], shared


for text in ("bob [E1] ann", "bob[E1]ann", "東 [E1] 京", "東[E1]京"):
    for normalized in (True, False):
        for strip in (True, False):
            part, shared = covered(text, normalized, strip)
            print(f"{text!r}, normalized={normalized}, strip={strip}: {part!r}, {shared} letters claimed twice")
            wide = normalized and strip and "東" in text
            assert shared == (2 if wide else 0)
            assert part == text if wide else part.strip() == "[E1]"
PY
