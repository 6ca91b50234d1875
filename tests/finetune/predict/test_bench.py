"""`tests/bench/bench_predict.py` runs, and its three builds agree."""

import importlib.util
import json
import logging
import sys
from pathlib import Path

import torch

BENCH = Path(__file__).parents[2] / "bench/bench_predict.py"


def test_the_bench_of_prediction_runs(monkeypatch, capsys):
    spec = importlib.util.spec_from_file_location("bench_predict", BENCH)
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)

    def child(folder, who, checkout):  # here, not in a process that imports for seconds
        return json.loads(json.dumps(bench.measure(folder, who)))

    monkeypatch.setattr(bench, "child", child)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["bench_predict", "--times", "1", "--posts", "60"])
    threads = torch.get_num_threads()
    try:
        bench.main()
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)
    lines = capsys.readouterr().out.splitlines()
    figures = {line[:40].strip(): line[40:].split() for line in lines[1:4]}
    assert figures.keys() == {bench.ONE, bench.BULK, f"{bench.PAIRS}, tiny"}
    assert all(float(cell) > 0 for cells in figures.values() for cell in cells if cell != "-")
    assert "damaged rows, and no others, told apart: True" in lines
    apart = {line.split(":")[0]: float(line.split(":")[1]) for line in lines if "and plain" in line}
    assert len(apart) == 2 and max(apart.values()) < 0.01
