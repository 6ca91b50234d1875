"""Every seed's inputs are compared: one may have been trained later than the others."""

from types import SimpleNamespace

import pytest

from finetune.report import changed
from finetune.run import provenance
from shards.files import InputError


@pytest.mark.parametrize("differing", [1, 2])
def test_any_seed_may_be_of_other_inputs(differing, tmp_path, monkeypatch):
    """Named once, whichever seed it is; a file that cannot be read is one of these."""
    for seed in (1, 2):
        (tmp_path / f"run/seed-{seed}").mkdir(parents=True)
        (tmp_path / f"run/seed-{seed}/result.json").write_text("{}")

    def changes(before, task, cache):
        if before.seed != differing:
            return []
        if differing == 2:
            raise InputError("line 3: no row")
        return ["txt/ours_train.txt", "txt/ours_train.txt"]

    seeds = {f"seed-{n}": SimpleNamespace(data=str(tmp_path), seed=n) for n in (1, 2)}
    monkeypatch.setattr(provenance, "kept_inputs", lambda directory: seeds[directory.name])
    monkeypatch.setattr(provenance, "changes", changes)
    monkeypatch.setattr(changed, "read_result", lambda run: {"task": "mnre"})
    monkeypatch.setattr(changed.registry, "load", lambda *names: lambda folder: None)
    (paths,) = changed.changed_inputs({"run": tmp_path / "run"}).values()
    unread = f"{tmp_path}: cannot be read any more (line 3: no row)"
    assert paths == (["txt/ours_train.txt"] if differing == 1 else [unread])
