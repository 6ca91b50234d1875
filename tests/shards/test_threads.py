"""Waiting threads sleep unless the user says otherwise."""

import os
import subprocess
import sys

import pytest

from shards.threads import SETTINGS, wait_passively


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_user_stands(name):
    environ = {name: "7"}
    wait_passively(environ)
    assert environ == {name: "7"}


@pytest.mark.parametrize("package", ["pretrain", "finetune"])
def test_before_torch(package):
    """The packages set it, and have not loaded torch by then."""
    code = (
        f"import {package}, os, sys; print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    )
    environ = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["PASSIVE", "False"]
