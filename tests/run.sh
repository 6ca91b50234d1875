#!/usr/bin/env bash
# Fresh machine -> environment with test extras -> all fast tests. Arguments go to pytest:
#   bash tests/run.sh                 everything but `slow`
#   bash tests/run.sh -m slow         the minutes-long ones
# The environment is .venv, or where FUSION_MRE_VENV points. The types of all three packages are
# checked first: mypy, by the settings in pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh "yolo,lexicon,test"
python -m mypy
exec python -m pytest -q "$@"
