"""`--init` is found, and its `config.json` read, once, by `Source.directory`."""

import pytest

from finetune import registry
from finetune.methods.base import Source
from finetune.tasks.base import TaskInfo
from pretrain.checkpoint import directory, strict

TASK = TaskInfo("mnre", "relation", ("None", "/per/per/peer"), ("<s>", "</s>", "<o>", "</o>"))


@pytest.mark.parametrize(
    "method, settings",
    [
        ("promu", {}),
        ("focalmre", {}),
        ("dgfpt", {"vision": "none"}),
        ("mkgformer", {"vision": "random", "fusion_layers": 1}),
    ],
)
def test_init_is_resolved_and_its_config_read_once(method, settings, tiny_model, monkeypatch):
    resolved, read = [], []
    resolve, member = directory.resolve, strict.member
    monkeypatch.setattr(directory, "resolve", lambda s, **o: resolved.append(s) or resolve(s, **o))
    monkeypatch.setattr(strict, "member", lambda d, name: read.append(name) or member(d, name))
    method_class = registry.load("methods", method)
    config = method_class.Config(**settings)
    method_class.build(config, TASK, Source(str(tiny_model)))
    assert resolved == [str(tiny_model)]
    assert read.count("config.json") == 1
