"""What a launcher says in the environment: believed by distributed commands, else ignored."""

import pytest

from pretrain import distributed, engine
from shards.files import InputError


@pytest.mark.parametrize(("rank", "world"), [("1", "2"), ("", ""), ("x", "y")])
def test_one_process_is_alone_whatever_the_shell_says(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    monkeypatch.setenv("LOCAL_RANK", rank)
    assert (distributed.rank(), distributed.world_size()) == (0, 1) and distributed.is_main()
    assert distributed.on_main(lambda: 3) == 3
    distributed.device()


def test_empty_values_are_none(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.setenv(name, "")
    assert engine.start("auto") == "single"


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x'"),
        ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two'"),
        ({"RANK": "3", "WORLD_SIZE": "2"}, "a rank is less than the number of ranks"),
        ({"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": ""}, "MASTER_ADDR is not"),
    ],
)
def test_nonsense_is_one_line_in_training(monkeypatch, environment, said):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError) as error:
        engine.start("auto")
    assert said in str(error.value) and "unset" in str(error.value)
    assert "\n" not in str(error.value)
