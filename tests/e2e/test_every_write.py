"""Killed at every write, rename and unlink, and on a disk that is full or fails there: the same
command then ends with the same bytes, and nothing is left over.
"""

import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import KILLED, MODES, SHOWN, Server, differences, snapshot
from small_world import posts, pretrain, study, train

LEFTOVER = re.compile(r"(^|/)\.[^/]+\.tmp(/|$)")


@dataclass(frozen=True)
class Scenario:
    """A command that writes below one folder."""

    argv: Callable[[Path, Path], str]
    """(world, root) -> its words."""
    prepare: Callable[[Path, Path], object] = lambda world, root: None
    """What lies below `root` before."""


SOUND = {"point": 0, "mode": ""}
SCENARIOS = {
    "train": Scenario(train),
    "study": Scenario(study),
    "convert": Scenario(lambda world, root: f"pretrain convert {world}/model {root}/out"),
    "convert over": Scenario(
        lambda world, root: f"pretrain convert {world}/model {root}/out",
        lambda world, root: shutil.copytree(world / "model", root / "out"),
    ),
    "predict": Scenario(posts),
    "view": Scenario(
        lambda world, root: f"view fraction --data {world}/mnre --out {root}/v --ratio 0.5"
    ),
    "regions": Scenario(
        lambda world, root: f"regions recover --data {world}/crops --out {root}/r --split val"
    ),
    "report": Scenario(
        lambda world, root: f"report {world}/run --out {root}/report.md --summary {root}/s.json"
    ),
    "shards": Scenario(
        lambda world, root: (
            f"shards build captions --images {world}/pictures "
            f"--captions {world}/pictures/captions.csv --out {root}/shards --shard-size 3 --jobs 1"
        )
    ),
    "detect": Scenario(
        lambda world, root: (
            f"shards detect {root}/shards --detector file --boxes {world}/boxes.jsonl"
        ),
        lambda world, root: shutil.copytree(
            world / "shards", root / "shards", ignore=shutil.ignore_patterns("objects")
        ),
    ),
    "pretrain": Scenario(pretrain),
}


# ---- one point after the other -----------------------------------------------------------------


class Trial:
    """A scenario in a folder of its own, and what an undisturbed run of it leaves."""

    def __init__(self, scenario: Scenario, world: Path, root: Path, server: Server) -> None:
        self.scenario, self.world, self.root, self.server = scenario, world, root, server
        self.argv = scenario.argv(world, root).split()
        self.clear()
        status, output = server.run(self.argv, root)
        assert status == 0, output
        self.operations, self.expected = server.operations(), snapshot(root)

    def clear(self) -> None:
        """As before the first run."""
        shutil.rmtree(self.root, ignore_errors=True)
        self.root.mkdir()
        self.scenario.prepare(self.world, self.root)

    def attempt(self, point: int, mode: str) -> list[str]:
        """What is wrong after a fault at one operation and the same command again."""
        self.clear()
        status, output = self.server.run(self.argv, self.root, point, mode)
        problems = []
        if mode == "kill" and status != KILLED:
            problems.append(f"not killed ({status})")
        if mode != "kill" and status == 0:
            # What could not be removed may wait for the next start.
            kept = {n: c for n, c in snapshot(self.root).items() if not LEFTOVER.search(n)}
            problems += differences(self.expected, kept)
        elif mode != "kill" and (len(SHOWN.findall(output)) != 1 or "Traceback" in output):
            problems.append(f"status {status}: {output.strip()[-600:]}")
        status, output = self.server.run(self.argv, self.root)
        if status:
            return [*problems, f"again: status {status}: {output.strip()[-600:]}"]
        return problems + differences(self.expected, snapshot(self.root))


def survey(trial: Trial, points: list[int], modes: tuple[str, ...]) -> dict[str, list[str]]:
    """`mode at operation` -> what was wrong; empty where nothing was."""
    return {
        f"{mode} at {point} ({trial.operations[point - 1]})": trial.attempt(point, mode)
        for point in points
        for mode in modes
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_every_operation(name, world, server, tmp_path):
    trial = Trial(SCENARIOS[name], world, tmp_path / "root", server)
    found = survey(trial, list(range(1, len(trial.operations) + 1)), MODES)
    wrong = {place: problems for place, problems in found.items() if problems}
    print(f"{name}: {len(found)} points, {len(found) - len(wrong)} passed")
    assert not wrong, "\n".join(f"{place}: {problems}" for place, problems in wrong.items())


@pytest.mark.parametrize("name", ["convert over", "shards", "detect", "view", "regions", "report"])
def test_some_operations(name, world, server, tmp_path):
    """One operation of each kind, in turns killed at and failing."""
    trial = Trial(SCENARIOS[name], world, tmp_path / "root", server)
    kinds = {operation.split()[0]: n for n, operation in enumerate(trial.operations, start=1)}
    for number, point in enumerate(kinds.values()):
        assert not trial.attempt(point, MODES[number % len(MODES)]), trial.operations[point - 1]


@pytest.mark.parametrize("umask", [0o027, 0o002])
def test_modes_follow_the_umask(umask, world, server, tmp_path):
    """Of every file and folder that a command makes."""
    for name, scenario in SCENARIOS.items():
        root = tmp_path / name.replace(" ", "-")
        root.mkdir()
        scenario.prepare(world, root)
        there = {(path, path.stat().st_ino) for path in root.rglob("*")}
        words = scenario.argv(world, root).split()
        ((status, output),) = server.ask([{"argv": words, "umask": umask} | SOUND], root)
        assert status == 0, output
        made = {p for p in root.rglob("*") if (p, p.stat().st_ino) not in there}
        wrong = {
            f"{name}: {path.relative_to(root)}: {oct(path.stat().st_mode & 0o777)}"
            for path in made
            if path.stat().st_mode & 0o777 != (0o777 if path.is_dir() else 0o666) & ~umask
        }
        assert made and not wrong
