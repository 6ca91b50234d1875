#!/usr/bin/env bash
# torch 2.15.0, torch.compile(fullgraph=True): `assert bank` of a non-empty tuple or NamedTuple ends
# in Unsupported ("TypeError when making fake tensor call"), though `if bank:` of the same value and
# `assert bank is not None` compile, and the function runs in eager mode. Without fullgraph the line
# costs a graph break without a word.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.15.0
"$folder/venv/bin/python" - <<'PY'
import torch
from torch._dynamo.exc import Unsupported

bank = (torch.randn(4, 3), 0.07)


def asserted(x, bank):
    assert bank
    return x @ bank[0].T


def branched(x, bank):
    return x @ bank[0].T if bank else x


def compared(x, bank):
    assert bank is not None
    return x @ bank[0].T


x = torch.randn(2, 3)
print("torch", torch.__version__)
assert torch.__version__.startswith("2.15.0")
expected = asserted(x, bank)
for function in (branched, compared):
    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x, bank), expected)
    print(f"{function.__name__}: one graph")
try:
    torch.compile(asserted, backend="eager", fullgraph=True)(x, bank)
except Unsupported as error:
    print(f"asserted: {str(error).splitlines()[0]}")
else:
    raise SystemExit("asserted: one graph; the behaviour has changed")
PY
