"""Pins what this environment has installed of all that fusion-mre needs, directly or indirectly.

python docker/lock.py > docker/requirements.lock     (Linux x86-64, after a passed `tests/run.sh`)
"""

import importlib.metadata as metadata
import platform
import sys

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HEADER = """\
# What the image installs: the versions that the tests passed with, Python {python}, Linux x86-64.
# Remade, not edited: python docker/lock.py > docker/requirements.lock
# Without hashes: the same file serves other Python versions, whose wheels are other files.
# Optional extras (yolo is AGPL) and test tools are not in it.
"""


def closure(name: str) -> dict[str, str]:
    """name -> version of a distribution's installed requirements, without extras, and theirs."""
    versions: dict[str, str] = {}
    waiting = [(name, "")]
    seen = set()
    while waiting:
        current, extra = waiting.pop()
        if (current, extra) in seen:
            continue
        seen.add((current, extra))
        distribution = metadata.distribution(current)
        versions[canonicalize_name(current)] = distribution.version
        for text in distribution.requires or ():
            requirement = Requirement(text)
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            waiting += [(requirement.name, extra) for extra in ("", *requirement.extras)]
    return versions


def lock() -> str:
    """The content of requirements.lock."""
    pinned = closure("fusion-mre")
    del pinned["fusion-mre"]
    pinned["setuptools"] = metadata.version("setuptools")  # builds the project itself
    lines = [f"{name}=={version}\n" for name, version in sorted(pinned.items())]
    return HEADER.format(python=platform.python_version()) + "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(lock())
