"""Other people's models: settings, tokenizers, names and files that are not as ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPTextConfig,
    CLIPVisionConfig,
)

from pretrain.checkpoint import authors, hub
from pretrain.checkpoint.foreign import check_settings, unwrapped
from shards.files import InputError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    (folder / "vocab.txt").unlink()
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(
        vocab_size=15, intermediate_size=16, max_position_embeddings=16, tie_word_embeddings=False,
        **sizes,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(folder)
    return folder


def edit(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename(folder: Path, change: Callable[[str], str]) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({change(name): value for name, value in state.items()}, folder / "model.safetensors")


def shard(folder: Path, where: str = "part-2.safetensors") -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"part-1.safetensors": names[::2], "part-2.safetensors": names[1::2]}
    for file, inside in parts.items():
        save_file({n: state[n] for n in inside}, folder / file, metadata={"format": "pt"})
    places = {
        n: where if file != "part-1.safetensors" else file for file in parts for n in parts[file]
    }
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder: Path, change: Callable[[str], str] = str) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save({change(name): value for name, value in state.items()}, folder / "pytorch_model.bin")


def same(folder: Path, original: Path) -> None:
    ours, _ = hub.load_text_tower(folder)
    theirs = BertModel.from_pretrained(original, add_pooling_layer=False).state_dict()
    assert ours.state_dict().keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: None,
        lambda folder: edit(folder, tie_word_embeddings=True, position_embedding_type="absolute"),
        lambda folder: edit(folder, gradient_checkpointing=False, pooler_type="first"),
        lambda folder: rename(folder, lambda name: f"_orig_mod.{name}"),
        lambda folder: rename(folder, lambda name: f"module.{name}"),
        lambda folder: rename(folder, lambda name: name.replace("bert.", "bert._orig_mod.", 1)),
        shard,
        pickled,
        lambda folder: pickled(folder, lambda name: f"module._orig_mod.{name}"),
    ],
    ids=["untied", "tied", "old fields", "compiled", "ddp", "compiled inside", "shards", "bin",
         "bin of both"],
)  # fmt: skip
def test_what_is_known_is_used(change, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "bert")
    change(folder)
    same(folder, bert)


def large_tokenizer(folder: Path) -> None:
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    tokenizer.add_tokens(["@user"])
    tokenizer.save_pretrained(folder)


def cased(folder: Path, words: str = "Anna\nBob\nthe") -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()
    (folder / "vocab.txt").write_text("\n".join([*WORDS[:5], *words.split("\n")]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: edit(f, position_embedding_type="relative_key"),
         '`position_embedding_type` is "relative_key": a model of that kind is not computed here'),
        (lambda f: edit(f, is_decoder=True), "`is_decoder` is true"),
        (lambda f: edit(f, pruned_heads={"1": [0]}), "`pruned_heads`"),
        (lambda f: edit(f, auto_map={"AutoModel": "m.Model"}), "`auto_map`"),
        (lambda f: edit(f, rotary_base=10_000), r"unknown field `rotary_base` \(10000\)"),
        (lambda f: edit(f, pad_token_id=99), "config.json: Padding_idx must be within"),
        (lambda f: edit(f, num_attention_heads=5), "config.json: .*5 heads do not fit"),
        (lambda f: edit(f, hidden_act=["gelu"]), "config.json: Validation error .*hidden_act"),
        (lambda f: edit(f, model_type=["bert"]), "`model_type` is missing or no text"),
        (large_tokenizer, "numbers 16 word pieces .*'@user'.* has rows for 15"),
        (cased, "vocab.txt holds capitals .*Anna, Bob"),
        (lambda f: shard(f, "part-3.safetensors"), "part-3.safetensors is missing"),
        (lambda f: shard(f, "../part-2.safetensors"), "leads out of the directory"),
    ],
)  # fmt: skip
def test_what_is_not_known_is_refused(change, message, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "bert")
    change(folder)
    with pytest.raises(InputError, match=message) as told:
        hub.load_text_tower(folder)
    assert "\n" not in str(told.value) and str(folder) in str(told.value)


@pytest.mark.parametrize("lower", [False, True])
def test_a_cased_vocabulary_that_says_so_is_read(lower, bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "bert")
    cased(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lower}))
    pieces = hub.load_tokenizer(folder).tokenize("Anna the")
    assert pieces == (["[UNK]", "the"] if lower else ["Anna", "the"])


def test_an_uncased_vocabulary_needs_no_word(bert, tmp_path):
    folder = shutil.copytree(bert, tmp_path / "bert")
    cased(folder, "anna\nbob\nthe")
    assert hub.load_tokenizer(folder).tokenize("Anna the") == ["anna", "the"]


@pytest.mark.parametrize("config", [BertConfig, CLIPConfig, CLIPTextConfig, CLIPVisionConfig])
def test_what_transformers_writes_is_known(config):
    check_settings(config().to_dict(), config, "config.json")
    check_settings(json.loads(config().to_json_string(use_diff=False)), config, "config.json")


def test_fields_inside_a_clip_are_accounted_for():
    content = CLIPConfig().to_dict()
    content["vision_config"]["register_tokens"] = 4
    with pytest.raises(InputError, match=r"config\.json: vision_config: unknown field `reg"):
        check_settings(content, CLIPConfig, "config.json")


# ---------------------------------------------------------------------- state dicts


def test_wrappers_of_state_dicts():
    tensor = torch.zeros(1)
    assert unwrapped("module._orig_mod.a.module.b_module.weight") == "a.module.b_module.weight"
    assert unwrapped("a._orig_mod.submodule.b") == "a.submodule.b"
    assert authors.unwrap({"state_dict": {"module.a": tensor}, "epoch": 3}) == {"a": tensor}
    assert authors.unwrap({"_orig_mod.a": tensor}) == {"a": tensor}
    with pytest.raises(InputError, match=r"several state dicts \(ema, model\)"):
        authors.unwrap({"model": {"a": tensor}, "ema": {"a": tensor}})
    with pytest.raises(InputError, match="not a state dict"):
        authors.unwrap({"epoch": 3})
