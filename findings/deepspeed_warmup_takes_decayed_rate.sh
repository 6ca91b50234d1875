#!/usr/bin/env bash
# deepspeed 0.19.8 beside torch 2.13.0's schedulers: WarmupLR and WarmupCosineLR take for their base
# rate whatever `lr` the optimizer has when they are made, and their state_dict holds the step alone, so
# loading it mends nothing (deepspeed/runtime/lr_schedules.py). torch leaves `initial_lr` in the
# optimizer's groups and keeps `base_lrs` in the scheduler's state, so either order resumes right.
# Hence, if the optimizer's state is loaded before the scheduler is made, a cosine goes on from its
# decayed rate as if that were the peak, and a warm-up that was cut ends at the rate it had. A second
# scheduler over an optimizer that has just been given one (which sets `lr` to the warm-up's begin, 0)
# stays at 0 for ever. The log says of any of them that it has not started yet, right or wrong. The
# reference says nothing of resuming (deepspeed.readthedocs.io/en/latest/schedulers.html); the engine
# loads its checkpoint after the scheduler is made, the order that works.
# Expected: the rates of a run that was not cut, as with torch's LambdaLR.
# Seen, at a peak of 0.1 over 100 steps: at step 75 0.0105 in place of 0.0179, at the warm-up's end
# 0.0699 in place of 0.1; second schedulers 0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 setuptools wheel
DS_BUILD_OPS=0 "$folder/venv/bin/pip" install --quiet --no-build-isolation deepspeed==0.19.8
"$folder/venv/bin/python" - 2> "$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import functools
import math

import deepspeed
import torch
from deepspeed.runtime.lr_schedules import WarmupCosineLR, WarmupLR

PEAK, STEPS, WARM = 0.1, 100, 10
assert deepspeed.__version__.startswith("0.19.8") and torch.__version__.startswith("2.13.0")


def optimizer():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)


def ratio(step):
    progress = (step - WARM) / (STEPS - WARM)
    return step / WARM if step < WARM else 0.5 + 0.5 * math.cos(math.pi * progress)


def run(made, steps, states=None, scheduler_first=False):
    """The rate after so many more steps, and both states; `states` of a run that was cut."""
    one = optimizer()
    scheduler = made(one) if scheduler_first else None
    if states:
        one.load_state_dict(states[0])
    scheduler = scheduler or made(one)
    if states:
        scheduler.load_state_dict(states[1])
    for _ in range(steps):
        one.step()
        scheduler.step()
    return one.param_groups[0]["lr"], (one.state_dict(), scheduler.state_dict())


cosine = functools.partial(WarmupCosineLR, total_num_steps=STEPS, warmup_num_steps=WARM)
warmup = functools.partial(WarmupLR, warmup_num_steps=WARM)
torchs = functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=ratio)
print("deepspeed", deepspeed.__version__)
rates = {}
for name, made, cut, end in (("torch's LambdaLR", torchs, 50, 75), ("WarmupCosineLR", cosine, 50, 75),
                             ("WarmupLR", warmup, 5, 50)):  # fmt: skip
    states = run(made, cut)[1]
    rates[name] = (run(made, end)[0], run(made, end - cut, states)[0],
                   run(made, end - cut, states, scheduler_first=True)[0])  # fmt: skip
    whole, resumed, first = (f"{rate:.4f}" for rate in rates[name])
    print(f"{name}, step {end}: {whole}; cut at {cut}: {resumed}; scheduler made first: {first}")
twice = []
for made in (torchs, cosine, warmup):
    one = optimizer()
    made(one)
    scheduler = made(one)
    for _ in range(50):
        one.step()
        scheduler.step()
    twice.append(one.param_groups[0]["lr"])
print("two schedulers, one after the other, step 50:", ", ".join(f"{rate:.4f}" for rate in twice))

for whole, resumed, first in rates.values():
    assert first == whole
assert rates["torch's LambdaLR"][0] == rates["torch's LambdaLR"][1] > 0
for name in ("WarmupCosineLR", "WarmupLR"):
    assert rates[name][1] < 0.75 * rates[name][0]
assert twice[0] > 0 and twice[1:] == [0, 0]
PY
