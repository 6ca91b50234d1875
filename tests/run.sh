#!/usr/bin/env bash
# Fresh machine -> environment with test extras -> all fast tests. Arguments go to pytest:
#   bash tests/run.sh                 everything but `slow`
#   bash tests/run.sh -m slow         the minutes-long ones
# The environment is .venv, or where FUSION_MRE_VENV points.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh "yolo,lexicon,test"
exec python -m pytest -q "$@"
