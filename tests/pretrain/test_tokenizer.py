"""A learned vocabulary: BERT's scheme, and the same one in every process."""

import subprocess
import sys

from pretrain.data.tokenizer import learn_tokenizer

CAPTIONS = [
    "A golden crown and a ring .",
    "man Junpax with an umbrella .",
    "Qui Belsor , a teal fish",
]


def test_the_same_captions_give_the_same_vocabulary_in_every_process():
    program = (
        f"from pretrain.data.tokenizer import learn_tokenizer; t = learn_tokenizer({CAPTIONS}, 90);"
        "print(sorted(t.get_vocab().items()))"
    )
    runs = [subprocess.check_output([sys.executable, "-c", program], text=True) for _ in range(2)]
    here = learn_tokenizer(CAPTIONS, 90)
    assert runs[0] == runs[1] == f"{sorted(here.get_vocab().items())}\n"


def test_bert_scheme_survives_saving(tmp_path):
    from transformers import AutoTokenizer

    learn_tokenizer(CAPTIONS, 90).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("a Golden RING", return_token_type_ids=False)["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    assert (tokens[0], tokens[-1]) == ("[CLS]", "[SEP]") and "[UNK]" not in tokens
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a golden ring"
    assert tokenizer.pad_token_id == 0
