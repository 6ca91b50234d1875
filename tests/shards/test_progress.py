"""Without a terminal a long command still says how far it is."""

import pytest

from shards import progress
from shards.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds that pass only when the test says so."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_line_every_thirty_seconds_and_none_between(clock, capsys):
    for _ in Progress(range(10), unit="shard", desc="label"):
        clock[0] += 10
    assert capsys.readouterr().err.splitlines() == [
        "label: shard 3 of 10, 0.1 shards/s, 01:10 left",
        "label: shard 6 of 10, 0.1 shards/s, 00:40 left",
        "label: shard 9 of 10, 0.1 shards/s, 00:10 left",
    ]


def test_a_resumed_count_is_not_part_of_the_speed(clock):
    lines: list[str] = []
    with Progress(unit="step", total=600, done=500, samples=64, say=lines.append) as steps:
        clock[0] += 40
        steps.advance(20)
        clock[0] += 20
        steps.spoke()
        clock[0] += 20
        steps.advance()
    assert lines == ["step 520 of 600, 32 samples/s, 02:40 left"]


def test_other_processes_are_silent(clock, capsys):
    for _ in Progress(range(3), unit="shard", silent=True):
        clock[0] += 100
    assert capsys.readouterr() == ("", "")


def test_an_unknown_total(clock, capsys):
    for _ in Progress(iter("ab"), unit="post"):
        clock[0] += 40
    assert capsys.readouterr().err.splitlines()[0] == "post 1, 0.025 posts/s"
