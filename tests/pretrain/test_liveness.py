"""A rank that dies, in whatever way, ends all others within seconds, and its name is printed."""

import json
import re
import subprocess
import sys

import pytest

# Forks three ranks a case: (seconds from the first one's end to the last one's, exit codes).
MAIN = """
import json, os, signal, sys, time
import torch.distributed as dist
from shards.files import CommonError
from shards.command import exit_on_input_error
from pretrain.cluster.liveness import Liveness
from shards.files import InputError

@exit_on_input_error
def rank_main(rank, how, culprit, others, rendezvous):
    dist.init_process_group("gloo", "file://" + rendezvous, rank=rank, world_size=3)
    with Liveness():
        dist.barrier()
        mine = rank == culprit
        match how:
            case "kill" if mine: os.kill(os.getpid(), signal.SIGKILL)
            case "input error" if mine: raise InputError("shard 7: a broken picture")
            case "error" if mine: raise ValueError("deep down\\nin the code")
            case "common error": raise CommonError("no such prompter")
            case "end": return
        if others == "asleep": time.sleep(60)  # a collective that never returns
        dist.barrier()

def child(rank, folder, case):
    os.dup2(os.open(f"{folder}/{rank}", os.O_CREAT | os.O_WRONLY), 2)
    os.environ["RANK"] = str(rank)
    try:
        rank_main(rank, *case, folder + "/rendezvous")
    except SystemExit as end:
        os._exit(end.code)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        os._exit(1)
    os._exit(0)

results = []
for number, case in enumerate(json.loads(sys.argv[2])):
    folder = f"{sys.argv[1]}/{number}"
    os.mkdir(folder)
    ranks = {}
    for rank in range(3):
        pid = os.fork()
        if not pid: child(rank, folder, case)
        ranks[pid] = rank
    ends = {}
    for _ in range(3):
        pid, status = os.wait()
        ends[ranks[pid]] = (time.monotonic(), os.waitstatus_to_exitcode(status))
    times, codes = zip(*(ends[rank] for rank in range(3)))
    printed = [open(f"{folder}/{rank}").read() for rank in range(3)]
    results.append((max(times) - min(times), codes, printed))
print(json.dumps(results))
"""
CASES = [
    ("kill", 0, "asleep"),
    ("kill", 2, "asleep"),
    ("input error", 1, "asleep"),
    ("input error", 1, "in a collective"),
    ("error", 1, "in a collective"),
    ("common error", 0, ""),
    ("end", 0, ""),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict:
    folder = str(tmp_path_factory.mktemp("liveness"))
    command = [sys.executable, "-c", MAIN, folder, json.dumps(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return dict(zip(CASES, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("culprit", [0, 2])
def test_killed(culprit, results):
    seconds, codes, printed = results["kill", culprit, "asleep"]
    assert seconds < 5 and codes == [-9 if rank == culprit else 1 for rank in range(3)]
    named = rf"error: rank {culprit} \(.*, pid \d+\) ended without a word"
    assert len(re.findall(named, "".join(printed))) == 1


@pytest.mark.parametrize("others", ["asleep", "in a collective"])
def test_an_error_of_one_rank_is_named(others, results):
    seconds, codes, printed = results["input error", 1, others]
    assert seconds < 5 and codes[1] == 2 and 0 not in codes
    assert printed[1] == "error: shard 7: a broken picture\n"
    assert re.search(r"error: rank 1 \(.*\): shard 7: a broken picture", printed[0])
    assert "Traceback" not in "".join(printed)


def test_an_exception_keeps_its_traceback_and_is_named(results):
    _, codes, printed = results["error", 1, "in a collective"]
    assert 0 not in codes and "Traceback" in printed[1]
    assert re.search(r"error: rank 1 \(.*\): ValueError: deep down\n", printed[0])


def test_a_common_error_is_told_by_the_main_process_alone(results):
    _, codes, printed = results["common error", 0, ""]
    assert codes == [2, 2, 2] and printed == ["error: no such prompter\n", "", ""]


def test_a_job_that_ends_well_ends_in_silence(results):
    _, codes, printed = results["end", 0, ""]
    assert codes == [0, 0, 0] and printed == ["", "", ""]
