"""What is said of a run directory that holds another run."""

from finetune.config import parse_train
from finetune.run.directory import claim, differences


def test_every_differing_setting_is_named_with_both_values():
    before = {"images": "none", "optim": {"lr": 0.001, "epochs": 3, "old": 1}, "model": None}
    now = {"images": "none", "optim": {"lr": 0.01, "epochs": 3}, "model": {"gate": "none"}}
    assert differences(before, now) == [
        "optim.lr 0.001 there, 0.01 now",
        "optim.old 1 there, null now",
        'model null there, {"gate": "none"} now',
    ]
    assert differences(now, now) == []


def test_secrets_of_urls_are_not_recorded(tmp_path):
    words = ["--task=mnre", "--method=mtb", "--data=d", f"--out={tmp_path}", "--images=none"]
    config = parse_train([*words, "--init=https://me:s3cret@host/model"])
    claim(tmp_path, config)
    assert "s3cret" not in (tmp_path / "config.yaml").read_text()
    (tmp_path / "seed-1").mkdir()
    claim(tmp_path, config)


def test_paths_that_are_spelled_otherwise_are_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "link").symlink_to("mine")
    for name in ("mine/", "./mine", str(tmp_path / "mine"), "link", "x/../mine"):
        assert differences({"data": "mine"}, {"data": name}) == []
    for one, other in (("mine", "yours"), ("s3://mine/", "s3://mine"), (None, "mine"), (1, "1")):
        assert len(differences({"data": one}, {"data": other})) == 1
