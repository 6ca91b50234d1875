"""Fixtures of the tests of DGF-PT."""

import json

import pytest
import torch
from parts_dgfpt import WORDS
from PIL import Image
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    GPT2Config,
    GPT2Model,
    GPT2TokenizerFast,
    OpenAIGPTConfig,
    OpenAIGPTModel,
)

from finetune.tasks.mnre import Mnre
from finetune.tasks.region_cache import Region, Regions, write_regions


@pytest.fixture(scope="session")
def language_models(tmp_path_factory, tiny_model):
    """Directories of a GPT-2, a GPT and a fusion model of some thousand random weights."""
    folder = tmp_path_factory.mktemp("plm")
    learned = ByteLevelBPETokenizer(add_prefix_space=True)
    learned.train_from_iterator([WORDS] * 3, vocab_size=300, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    found = {"fusion": tiny_model}
    sizes = {"vocab_size": 300, "n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 128}
    for name, model in (
        ("gpt2", GPT2Model(GPT2Config(**sizes))),
        ("openai-gpt", OpenAIGPTModel(OpenAIGPTConfig(**sizes))),
    ):
        found[name] = folder / name
        model.save_pretrained(found[name])
        learned.save_model(str(found[name]))
        GPT2TokenizerFast(
            vocab=str(found[name] / "vocab.json"), merges=str(found[name] / "merges.txt")
        ).save_pretrained(found[name])
    return found


@pytest.fixture(scope="session")
def task(tmp_path_factory):
    """Ten posts. Picture 1 has no detected object, the others one or two."""
    folder, detected, lines = tmp_path_factory.mktemp("mnre"), {}, []
    (folder / "txt").mkdir()
    (folder / "img_org" / "val").mkdir(parents=True)
    relations = ("None", "/per/per/couple", "/per/org/member_of")
    (folder / "ours_rel2id.json").write_text(
        json.dumps({name: i for i, name in enumerate(relations)})
    )
    for row in range(10):
        tokens = ["RT", "@x", ":", "Ann", "and", "Bob", *["tonight"] * (row % 3)]
        head, tail = {"name": "Ann", "pos": [3, 4]}, {"name": "Bob", "pos": [5, 6]}
        name = f"val{row}.jpg"
        line = {
            "token": tokens,
            "h": head,
            "t": tail,
            "img_id": name,
            "relation": relations[row % 3],
        }
        lines.append(repr(line))
        Image.new("RGB", (20, 16), (25 * row, 90, 200)).save(folder / "img_org" / "val" / name)
        some = (Region((0, 0, 8, 8), 0.9, "x"), Region((4, 4, 12, 12), 0.8, "y"))
        detected[name] = Regions(name, (20, 16), some[: 0 if row == 1 else 1 + row % 2])
    (folder / "txt" / "ours_val.txt").write_text("\n".join(lines))
    write_regions(folder / "regions_od.jsonl", {"leaky": False}, detected)
    return Mnre(folder)
