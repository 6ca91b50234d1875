"""What is said of a run directory that holds another run."""

from finetune.run.directory import differences


def test_every_differing_setting_is_named_with_both_values():
    before = {"images": "none", "optim": {"lr": 0.001, "epochs": 3, "old": 1}, "model": None}
    now = {"images": "none", "optim": {"lr": 0.01, "epochs": 3}, "model": {"gate": "none"}}
    assert differences(before, now) == [
        "optim.lr 0.001 there, 0.01 now",
        "optim.old 1 there, null now",
        'model null there, {"gate": "none"} now',
    ]
    assert differences(now, now) == []
