"""How the threads of OpenMP wait, decided before torch loads its runtime."""

import os
from collections.abc import MutableMapping

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of them says how threads wait; the second is GNU's, the third Intel's and LLVM's."""


def wait_passively(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let threads sleep while they wait, unless the user says otherwise: on a machine with other
    work a spinning one burns the core that the thread it waits for needs."""
    if not any(environ.get(name) for name in SETTINGS):
        environ.update({"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"})
