"""A fine-tuned model is read strictly: head, description, tokenizer, like the encoder."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from finetune import registry
from finetune.methods.base import Source
from finetune.run.checkpoint import load_method, read_description, save_method
from finetune.tasks.mnre import Mnre
from shards.files import InputError

INPUTS = {"images": "none", "max_length": 40}


@pytest.fixture
def written(tmp_path, mnre_folder, tiny_model):
    """An untrained `hvpnet`, which has settings of every type, floats and counters in its head."""
    task = Mnre(mnre_folder).info
    method_class = registry.load("methods", "hvpnet")
    config = method_class.Config(
        vision="resnet10t", vision_random=True, vision_width=8, image_size=64, prompt_width=8
    )
    method, tokenizer = method_class.build(config, task, Source(str(tiny_model)))
    out = tmp_path / "model"
    save_method(
        out, method, tokenizer, name="hvpnet", config=config, task=task, inputs=INPUTS, card="#\n"
    )
    return out


@pytest.fixture
def saved(written):
    """As older code wrote it, without checksums: each check is seen by itself."""
    (written / "checksums.json").unlink()
    return written


def refused(directory, *names):
    with pytest.raises(InputError) as caught:
        load_method(directory)
    message = str(caught.value)
    assert "\n" not in message
    for name in (str(directory), *names):
        assert name in message, message


def test_round_trip(saved, mnre_folder):
    method, _, description = load_method(saved)
    assert description.method == "hvpnet" and description.inputs == INPUTS
    assert description.task == Mnre(mnre_folder).info and description.config.prompt_width == 8
    assert not method.training


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        ("method", lambda content: content.update(method=["hvpnet"])),
        ("method", lambda content: content.pop("method")),
        ("unknown", lambda content: content.update(method="hvpnett")),
        ("config", lambda content: content.update(config=[1])),
        ("prompt_width", lambda content: content["config"].update(prompt_width="wide")),
        ("profile", lambda content: content["config"].update(profile="old")),
        ("freeze", lambda content: content["config"].update(freeze=1)),
        ("width", lambda content: content["config"].update(width=3)),
        ("regions", lambda content: content["config"].update(regions=-1)),
        ("task", lambda content: content.update(task="mnre")),
        ("labels", lambda content: content["task"].update(labels="abc")),
        ("labels", lambda content: content["task"].update(labels=[1, 2])),
        ("labels", lambda content: content["task"].update(labels=[])),
        ("labels", lambda content: content["task"].update(labels=["a", "a"])),
        ("extra_tokens", lambda content: content["task"].pop("extra_tokens")),
        ("kind", lambda content: content["task"].update(kind="sentiment")),
        ("task", lambda content: content["task"].update(name="mnrex")),
        ("images", lambda content: content["inputs"].update(images="all")),
        ("max_length", lambda content: content["inputs"].update(max_length="40")),
        ("captions", lambda content: content["inputs"].update(captions=7)),
        ("pixels", lambda content: content["inputs"].update(pixels=7)),
        ("inputs", lambda content: content.pop("inputs")),
        ("format", lambda content: content.update(format=2)),
        ("tokenizer", lambda content: content.update(tokenizer=[])),
    ],
)
def test_edited_descriptions(saved, name, edit):
    path = saved / "method.json"
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))
    refused(saved, "method.json", name)


@pytest.mark.parametrize("content", ("", "{", "[]", "null"))
def test_descriptions_that_are_no_object(saved, content):
    (saved / "method.json").write_text(content)
    refused(saved, "method.json")


def edited_head(saved, change):
    path = saved / "head.safetensors"
    state = load_file(path)
    name = next(key for key, tensor in state.items() if tensor.is_floating_point())
    state[name] = change(state[name])
    save_file(state, path, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize(
    ("word", "change"),
    [
        ("NaN", lambda tensor: torch.full_like(tensor, float("nan"))),
        ("infinity", lambda tensor: tensor.fill_(float("inf"))),
        ("int8", lambda tensor: tensor.to(torch.int8)),
        ("int64", lambda tensor: tensor.to(torch.int64)),
        ("expected", lambda tensor: torch.cat([tensor, tensor])),
    ],
)
def test_heads_that_no_training_wrote(saved, word, change):
    refused(saved, edited_head(saved, change), word)


def test_counters_stay_whole_numbers(saved):
    path = saved / "head.safetensors"
    state = load_file(path)
    name = next(key for key in state if key.endswith("num_batches_tracked"))
    save_file(state | {name: state[name].float()}, path)
    refused(saved, name)


def test_damaged_missing_and_linked_heads(saved, tmp_path):
    path = saved / "head.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-9])
    refused(saved, "head.safetensors", "damaged")
    path.unlink()
    refused(saved, "head.safetensors")
    (tmp_path / "elsewhere").write_bytes(content)
    path.symlink_to(tmp_path / "elsewhere")
    refused(saved, "link out of the directory")


def test_another_tokenizer(saved):
    """A shuffled vocabulary loads, and would give other answers in silence."""
    path = saved / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    first, second = list(vocabulary)[6:8]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(content))
    refused(saved, "tokenizer.json", "not the tokenizer")
    description = json.loads((saved / "method.json").read_text())
    del description["tokenizer"]  # a run that is older than the record
    (saved / "method.json").write_text(json.dumps(description))
    assert read_description(saved).method == "hvpnet"


def test_a_flipped_bit_in_any_file_is_named(written, caplog):
    """Tensors and what only we write: an error; text that people edit: a warning."""
    names = {path.name for path in written.iterdir() if path.suffix in (".safetensors", ".json")}
    assert {"model.safetensors", "head.safetensors", "method.json", "labels.json"} <= names
    for name in names - {"checksums.json"}:
        path, content = written / name, (written / name).read_bytes()
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
        caplog.clear()
        said = ""
        try:
            load_method(written)
        except InputError as error:
            said = str(error)
        assert said or name in caplog.text, name
        path.write_bytes(content)
    load_method(written)
