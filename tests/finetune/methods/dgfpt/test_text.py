"""DGF-PT reading: one pass, causality, orders, spans, captions."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from parts_dgfpt import TOWER, batch_of, build
from tokenizers import Tokenizer, normalizers
from transformers import (
    DynamicCache,
    GPT2Model,
)

from finetune.inputs.batch import Batch
from finetune.methods.base import Source
from finetune.methods.dgfpt.config import ORDERS, DgfptConfig
from finetune.methods.dgfpt.language_model import load_plm, read
from finetune.methods.dgfpt.text import Unmarker, lay_out
from finetune.tasks.mnre import MARKERS, RelationRow


def parts_of(order, size, rows=3):
    """Random segments; objects partly masked, the second row without picture, text padded."""
    generator = torch.Generator().manual_seed(1)
    lengths = {"begin": 1, "Po": 5, "Pe": 6, "O": 4, "I": 2, "T": 7}
    parts = {}
    for name in ("begin", *order):
        length = lengths[name]
        mask = torch.ones(rows, length, dtype=torch.bool)
        if name == "O":
            mask[0, 2:], mask[1] = False, False
        if name == "I":
            mask[1] = False
        if name == "T":
            mask[2, 5:] = False
        parts[name] = torch.randn(rows, length, size, generator=generator), mask
    return parts


@pytest.mark.parametrize("order", sorted(ORDERS))
def test_one_pass_is_the_staged_run(language_models, order):
    """Oracle: segment after segment through the key/value cache of every layer."""
    model = GPT2Model.from_pretrained(language_models["gpt2"]).eval()
    layout = lay_out(parts_of(ORDERS[order].split(), 16), "continue")
    with torch.inference_mode():
        whole = read(model, layout.embeds, layout.mask, layout.positions)
        cache, staged = DynamicCache(config=model.config), []
        for place in layout.places.values():
            stage = model(
                inputs_embeds=layout.embeds[:, place],
                attention_mask=layout.mask[:, : place.stop],
                position_ids=layout.positions[:, place],
                past_key_values=cache,
                use_cache=True,
            )
            staged.append(stage.last_hidden_state)
    shown = layout.mask
    torch.testing.assert_close(torch.cat(staged, 1)[shown], whole[shown], atol=1e-5, rtol=1e-5)


def test_positions():
    layout = lay_out(parts_of(ORDERS["o_i_t"].split(), 4), "continue")
    counted = torch.stack([row.cumsum(0) - 1 for row in layout.mask.long()]).clamp(min=0)
    assert torch.equal(layout.positions, counted)
    again = lay_out(parts_of(ORDERS["t_o_i"].split(), 4), "restart_text")
    text = again.places["T"]
    assert again.positions[0, text].tolist() == list(range(1, 8))
    assert torch.equal(again.positions[:, : text.start], layout.positions[:, : text.start])


@pytest.mark.parametrize(("order", "moves"), [("t_o_i", False), ("t_i_o", False), ("o_i_t", True)])
def test_text_reads_what_lies_before_it(language_models, task, tmp_path, order, moves):
    """And a text that comes first knows nothing of the picture but through the object prefix."""
    segments = ORDERS[order].replace("Po ", "")
    method, tokenizer = build(task, language_models["gpt2"], segments=segments, **TOWER)
    batch = batch_of(task, tmp_path, method.eval(), tokenizer)
    other = Batch(**vars(batch) | {"image_features": batch.image_features.flip(0), "weight": 1.0})
    texts = []
    for one in (batch, other):
        text, seen = method.unmark(one.input_ids, one.attention_mask), method.see(one)
        layout = method.lay_out(text, seen, method.questions(one.entity_types))
        states = read(method.encoder, layout.embeds, layout.mask, layout.positions)
        texts.append(states[:, layout.places["T"]][text.mask])
    assert torch.equal(*texts) != moves


def test_orders_are_those_of_tables_2_and_4():
    """The table of dgfpt.md §2.3, typed in once more."""
    listed = {
        "o_i_t": "Po Pe O I T", "o_t_i": "Po Pe O T I", "i_o_t": "Po Pe I O T",
        "i_t_o": "Po Pe I T O", "t_o_i": "Po Pe T O I", "t_i_o": "Po Pe T I O",
        "without_prefixes": "O I T", "without_entity_prefix": "Po O I T",
        "without_object_prefix": "Pe O I T",
        "prefixes_in_s2": "O Po Pe I T", "prefixes_in_s3": "O I Po Pe T",
        "entity_prefix_in_s2": "Po O Pe I T", "entity_prefix_in_s3": "Po O I Pe T",
        "object_prefix_in_s2": "Pe O Po I T", "object_prefix_in_s3": "Pe O I Po T",
        "entity_prefix_in_s2_object_prefix_in_s3": "O Pe I Po T",
        "entity_prefix_in_s3_object_prefix_in_s2": "O Po I Pe T",
    }  # fmt: skip
    assert listed == ORDERS
    for wrong in ("", "Po Pe O I", "T T", "T X"):
        with pytest.raises(ValueError, match="segments"):
            DgfptConfig(segments=wrong)


@pytest.mark.parametrize("order", ["prefixes_in_s3", "entity_prefix_in_s3_object_prefix_in_s2"])
def test_the_method_lays_out_what_the_table_says(language_models, task, tmp_path, order):
    method, tokenizer = build(task, language_models["gpt2"], segments=order, **TOWER)
    batch = batch_of(task, tmp_path, method, tokenizer)
    text, seen = method.unmark(batch.input_ids, batch.attention_mask), method.see(batch)
    layout = method.lay_out(text, seen, method.questions(batch.entity_types))
    assert list(layout.places) == ["begin", *ORDERS[order].split()]


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt", "fusion"])
@pytest.mark.parametrize(
    ("head", "tail"),
    [((3, 4), (5, 6)), ((5, 6), (3, 4)), ((0, 2), (2, 3)), ((7, 9), (1, 9)), ((2, 6), (4, 9)),
     ((3, 3 + 6), (3, 4))],
)  # fmt: skip
def test_spans_map_back_to_entities(language_models, task, family, head, tail):
    """Apart, adjacent, nested, overlapping, at the end; its pieces decode to its words."""
    words = ("RT", "@x", ":", "Ann", "and", "Bob", "at", "Dora", "Finn")
    row = RelationRow(row=0, image_id=None, tokens=words, head=head, tail=tail, relation="None")
    other = RelationRow(
        row=1, image_id=None, tokens=words[:4], head=(0, 1), tail=(3, 4), relation="None"
    )
    _, tokenizer = load_plm(Source(str(language_models[family])), task.info, "continue")
    columns = task.encode([row, other], tokenizer, 60)
    width = max(map(len, columns["input_ids"]))
    ids = torch.zeros(2, width, dtype=torch.long)
    mask = torch.zeros(2, width, dtype=torch.bool)
    for i, pieces in enumerate(columns["input_ids"]):
        ids[i, : len(pieces)], mask[i, : len(pieces)] = torch.from_numpy(pieces), True
    for keep in (False, True):
        text = Unmarker(tokenizer, task.info, keep)(ids, mask)
        for span, (first, end) in ((text.head, head), (text.tail, tail)):
            decoded = tokenizer.decode(text.ids[0][span[0]].tolist())
            assert "".join(decoded.split()).lower() == "".join(words[first:end]).lower()
        whole = tokenizer.decode(text.ids[0][text.mask[0]].tolist())
        markers = [marker for marker in MARKERS if marker in whole]
        assert markers == (list(MARKERS) if keep else [])
        if not keep:
            assert "".join(whole.split()).lower() == "".join(words).lower()
        assert not text.ids[~text.mask].any()


@pytest.mark.parametrize("family", ["gpt2", "openai-gpt"])
def test_words_are_split_as_tokenizer_json_says(language_models, task, tmp_path, family):
    """A rule that the class would not build anew; each word has its blank, or begins anew."""
    folder = shutil.copytree(language_models[family], tmp_path / family)
    file = Tokenizer.from_file(str(folder / "tokenizer.json"))
    file.normalizer = normalizers.Replace("Oslo", "Ann")
    file.save(str(folder / "tokenizer.json"))
    _, tokenizer = load_plm(Source(str(folder)), task.info, "continue")
    ids = tokenizer([["Oslo", "Ann"]], is_split_into_words=True)["input_ids"][0]
    assert ids[: len(ids) // 2] == ids[len(ids) // 2 :]
    assert ids == tokenizer("Bob Ann Ann")["input_ids"][-len(ids) :]


def test_an_entity_without_pieces_takes_the_next(task):
    """A tokenizer may drop a character altogether; the entity is then where it would stand."""
    tokenizer = SimpleNamespace(
        cls_token_id=101, sep_token_id=102,
        convert_tokens_to_ids=lambda names: [1, 2, 3, 4],
    )  # fmt: skip
    ids = torch.tensor([[101, 7, 1, 2, 8, 3, 9, 4, 102], [101, 7, 3, 8, 4, 9, 1, 2, 102]])
    text = Unmarker(tokenizer, task.info, False)(ids, torch.ones_like(ids).bool())
    assert text.ids.tolist() == [[7, 8, 9], [7, 8, 9]]
    assert text.head.tolist() == [[False, True, False], [False, False, True]]
    assert text.tail.tolist() == [[False, False, True], [False, True, False]]


@pytest.mark.parametrize("family", ["gpt2", "fusion"])
def test_caption_is_weighed_and_may_be_absent(language_models, task, tmp_path, family):
    texts = ["", *["Ann and Bob at last"] * 9]
    lines = [repr({"img_id": f"val{i}.jpg", "text": text}) for i, text in enumerate(texts)]
    (tmp_path / "mine_val.txt").write_text("\n".join(lines))
    settings = {"vision": "none", "caption_weight": 0.4}
    method, tokenizer = build(task, language_models[family], **settings)
    options = {
        "images": "none",
        "captions": str(tmp_path / "mine_{split}.txt"),
        "max_caption_length": 32,
    }
    batch = batch_of(task, tmp_path, method.eval(), tokenizer, **options)
    term = method.caption_term(batch)
    assert term.shape == (8, 1, method.caption.in_features)
    assert not term[0].any() and term[1].any()
    torch.testing.assert_close(term[1], term[7])  # the same words, whatever the padding
    method.train()
    method(batch).loss.backward()
    assert method.caption.weight.grad.any()
