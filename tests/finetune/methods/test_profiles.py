"""`--model.profile`: one mechanism for all methods whose authors' code is reproduced."""

import dataclasses

import pytest
import yaml

from finetune import registry
from finetune.config import parse_train
from finetune.methods.mkgformer.config import MKGformerConfig
from finetune.methods.profiles import Profiled, in_present_names
from finetune.run.directory import claim
from shards.files import InputError
from shards.options import dump_config

METHODS = [name for name in registry.METHODS if issubclass(registry.load_config(name), Profiled)]
RUN = ["--task", "mnre", "--data", "d", "--init", "m", "--out", "r"]


def test_which_methods_have_one():
    assert METHODS == ["mkgformer", "hvpnet", "tmr", "camim_hvpnet", "camim_tmr"]


@pytest.mark.parametrize("kind", ["relation", "entities"])
@pytest.mark.parametrize("name", METHODS)
def test_every_switch_is_settled_by_both_profiles_and_can_be_chosen(name, kind):
    """Nothing that a profile names stays null; what is given stays, whatever the profile."""
    config_class = registry.load_config(name)
    fixed, legacy = (config_class(profile=profile) for profile in ("fixed", "legacy"))
    null = {f.name for f in dataclasses.fields(fixed) if getattr(fixed, f.name) is None}
    for profile in (fixed, legacy):
        assert {k for k in null if getattr(profile.settled(kind), k) is None} == set()
    differing = {k for k in null if getattr(fixed.settled(), k) != getattr(legacy.settled(), k)}
    assert differing  # else there was nothing to mend
    for switch in differing:
        value = getattr(fixed.settled(), switch)
        settled = config_class(profile="legacy", **{switch: value}).settled()
        assert getattr(settled, switch) == value
        others = null - {switch}
        assert all(getattr(settled, k) == getattr(legacy.settled(), k) for k in others)


def test_camim_adds_to_the_method_underneath():
    tmr, camim = (registry.load_config(name) for name in ("tmr", "camim_tmr"))
    theirs, ours = (dataclasses.asdict(c(profile="legacy").settled()) for c in (tmr, camim))
    assert theirs.items() <= ours.items()
    assert (ours["combine"], ours["swap_words"], ours["mask_words"]) == ("add", True, False)


@pytest.mark.parametrize(("preset", "profile"), [("modern", "fixed"), ("legacy", "legacy")])
def test_mkgformers_former_preset(preset, profile, tmp_path):
    """In method.json, as a `--config` whose values the command line overrides, and when a run is
    taken up again: as written by commit 265d405."""
    settings = in_present_names(MKGformerConfig, {"preset": preset, "pad_to": 12, "vg": 2})
    assert MKGformerConfig(**settings) == MKGformerConfig(profile=profile, pad_to=12, vg=2)
    old = tmp_path / "old.yaml"
    old.write_text(yaml.safe_dump({"method": "mkgformer", "model": {"preset": preset, "vg": 2}}))
    for words in (["--config", str(old)], [f"--config={old}"]):
        assert parse_train([*words, *RUN]).model == MKGformerConfig(profile=profile, vg=2)
    assert parse_train(["--config", str(old), *RUN, "--model.profile", "fixed"]).model.profile == (
        "fixed"
    )
    config = parse_train(["--config", str(old), *RUN])
    (tmp_path / "run" / "seed-1").mkdir(parents=True)
    before = yaml.safe_load(dump_config(config))
    before["model"]["preset"] = preset
    del before["model"]["profile"]
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(before))
    claim(tmp_path / "run", config)
    before["model"]["preset"] = "modern" if preset == "legacy" else "legacy"
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(before))
    with pytest.raises(InputError, match=r"other settings: model\.p"):
        claim(tmp_path / "run", config)
