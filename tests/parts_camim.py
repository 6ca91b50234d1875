"""Parts of the tests of CAMIM."""

import torch

from finetune.inputs.load import load_split
from finetune.inputs.split import InputOptions
from finetune.methods.base import Source
from finetune.methods.camim.model import CamimHvpnet, CamimTmr
from finetune.tasks.mnre import Mnre

TINY = {"vision": "resnet10t", "vision_random": True, "vision_width": 4, "image_size": 64}


METHODS = {"tmr": CamimTmr, "hvpnet": CamimHvpnet}


def naive(module, position_rows, sentence, words):
    """The module on one picture and the real words of its caption, as §3.2 of camim.md says."""
    rows = position_rows
    if module.sentence is not None:
        rows = module.sentence(torch.cat([rows, sentence.expand(len(rows), -1)], dim=-1))
    rows = module.back(rows)
    if module.attention is None:
        return rows
    words, unit = module.word(words), module.attention

    def att(q, k, v):
        return (q @ k.T / q.shape[-1] ** 0.5).softmax(-1) @ v

    def norm(a, b):
        joined = torch.cat([a, b], -1) if unit.combine == "concat" else a + b
        return (joined - joined.mean(-1, keepdim=True)) / (
            joined.var(-1, keepdim=True, correction=0) + 1e-5
        ).sqrt()

    qx, kx, vx = unit.query(rows), unit.key(rows), unit.value(rows)
    ky, vy = unit.word_key(words), unit.word_value(words)
    sides = [norm(att(qx, kx, vx), att(qx, ky, vy))]
    if unit.word_query is not None:
        qy = unit.word_query(words)
        own = att(ky, qy, vy) if unit.swap_words else att(qy, ky, vy)
        sides.append(norm(own, att(qy, kx, vx)))
    return torch.nn.functional.elu(unit.merge(torch.cat(sides)))


def load(folder, model, tmp_path, on="tmr", images="none", views=None, captions="caption",
         caption_length=8, **settings):  # fmt: skip
    task = Mnre(folder)
    if on == "tmr":
        settings = {"generated": "none", "mi_pair": "tf"} | settings
    config = METHODS[on].Config(**(TINY | settings))
    torch.manual_seed(0)
    method, tokenizer = METHODS[on].build(config, task.info, Source(str(model)))
    options = InputOptions(
        images=images, max_length=40, regions="none", cache=tmp_path / "cache", views=views or {},
        captions=captions, max_caption_length=caption_length,
    )  # fmt: skip
    return method.eval(), load_split(task, "val", tokenizer, method, options), tokenizer
