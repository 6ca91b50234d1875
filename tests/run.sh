#!/usr/bin/env bash
# Fresh machine -> environment with test extras -> all fast tests. Arguments go to pytest:
#   bash tests/run.sh                 everything but `slow`, on all cores
#   bash tests/run.sh -m slow         the minutes-long ones, one after another
# The environment is .venv, or where FUSION_MRE_VENV points. The types of all three packages are
# checked beside the tests: mypy, by the settings in pyproject.toml.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh "yolo,lexicon,test"
types=$(mktemp)
python -m mypy >"$types" 2>&1 &
checker=$!
trap 'kill "$checker" 2>/dev/null || :; rm -f "$types"' EXIT
# A process for each core, up to 8. A file's tests stay in one: what they share is made once. In
# their own order, the longest come first (e2e), and no core waits at the end.
cores=$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)  # by these it would count threads
[ $# -gt 0 ] || set -- -n $((cores < 8 ? cores : 8)) --dist loadfile --no-loadscope-reorder
status=0
python -m pytest -q "$@" || status=$?
if ! wait "$checker"; then
    cat "$types"
    status=1
fi
exit "$status"
