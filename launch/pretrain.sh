#!/usr/bin/env bash
""":"
# Pre-training under any launcher. This file is valid shell and valid Python, so that all of
#   deepspeed launch/pretrain.sh …      bash launch/pretrain.sh …      torchrun launch/pretrain.sh …
# work: a launcher runs it with Python, a shell runs the lines below. Many machines:
#   bash launch/pretrain.sh --hostfile HOSTS …   = deepspeed --hostfile HOSTS launch/pretrain.sh …
# with this shell's environment taken along (.deepspeed_env). More ways: launch/README.md.
[ -n "${LOCAL_RANK:-}" ] && exec python -u "$0" "$@"
hosts=()
if [ "${1:-}" = --hostfile ]; then
    PYTHONPATH="$(dirname "$0")/..:${PYTHONPATH:-}" python -m pretrain.cluster.nodes "$2" || exit
    hosts=(--hostfile "$2")
    shift 2
fi
exec deepspeed "${hosts[@]}" "$0" "$@"
: <<"# end of Python" #"""
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository root, not launch/
    from pretrain.__main__ import main
    from shards.processes import run

    run(main)
# end of Python
