"""One token in the place of each entity, on the example of tmr.md §2.1."""

import numpy as np
import pytest
from transformers import BertTokenizerFast

from finetune.inputs.batch import Dataset
from finetune.inputs.spec import InputSpec, Wanted
from finetune.inputs.split import InputOptions, LoadedSplit
from finetune.methods.base import Source
from finetune.methods.tmr.masked_entities import HIDDEN, add_masked_entities
from finetune.methods.tmr.model import Tmr, TmrConfig
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS, Mnre, RelationRow
from finetune.tasks.twitter import bio_labels
from shards.files import InputError

H, H_END, T, T_END = MARKERS
HEAD, TAIL = HIDDEN


@pytest.fixture
def masked(tmp_path, mnre_folder):
    """(head, tail) of "a b c d e" -> pieces and positions of the opening markers."""
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *HIDDEN, *"abcde", "##b"]))
    tokenizer = BertTokenizerFast(str(path))
    tokenizer.add_tokens(list(MARKERS), special_tokens=True)

    def of(head, tail, words="abcde", tokenizer=tokenizer):
        row = RelationRow(row=0, image_id="x", tokens=tuple(words), head=head, tail=tail,
                          relation="None")  # fmt: skip
        task = Mnre(mnre_folder)
        columns = task.encode([row], tokenizer, 80)
        assert columns.pop("unread").tolist() == [0]
        dataset = Dataset(rows=np.array([0]), columns=columns)
        options = InputOptions(images="none", max_length=80, cache=tmp_path)
        wanted = Wanted(task=task, split="val", original=[row], tokenizer=tokenizer,
                        spec=InputSpec(method="Tmr"), options=options)  # fmt: skip
        loaded = add_masked_entities(LoadedSplit([row], ["None"], dataset), wanted)
        columns = loaded.dataset.columns
        pieces = tokenizer.convert_ids_to_tokens(columns["input_ids"][0])
        return pieces, int(columns["head_start"][0]), int(columns["tail_start"][0])

    return of


def test_example(masked):
    """Tail first; a mention of several words and pieces becomes one token; the ends."""
    expected = ["[CLS]", "a", T, TAIL, T_END, "c", H, HEAD, H_END, "e", "[SEP]"]
    assert masked((3, 4), (1, 2)) == (expected, 6, 2)
    expected = ["[CLS]", H, HEAD, H_END, "c", T, TAIL, T_END, "[SEP]"]
    assert masked((0, 2), (3, 5), ["ab", "b", "c", "d", "e"]) == (expected, 1, 5)


def test_nested(masked):
    """Both stay, nothing of either's words."""
    expected = ["[CLS]", "a", H, HEAD, T, TAIL, T_END, H_END, "e", "[SEP]"]
    assert masked((1, 4), (2, 3)) == (expected, 2, 4)


def test_refused(masked, tmp_path, tiny_model):
    path = tmp_path / "few.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcde"]))
    few = BertTokenizerFast(str(path))
    few.add_tokens(list(MARKERS), special_tokens=True)
    with pytest.raises(InputError, match=r"has no \[unused4\]; begin with a BERT"):
        masked((3, 4), (1, 2), tokenizer=few)
    task = TaskInfo("twitter2017", "entities", bio_labels())
    with pytest.raises(InputError, match="mask_entity"):
        Tmr.build(TmrConfig(vision="none", mask_entity=True), task, Source(str(tiny_model)))
    task = TaskInfo("mnre", "relation", ("None", "a"), MARKERS)
    method, _ = Tmr.build(TmrConfig(vision="none", mask_entity=True), task, Source(str(tiny_model)))
    assert "masked_entities" in method.needs
