#!/usr/bin/env bash
""":"
# Fine-tuning under any launcher. This file is valid shell and valid Python, so that all of
#   deepspeed launch/finetune.sh …      bash launch/finetune.sh …      torchrun launch/finetune.sh …
# work: a launcher runs it with Python, a shell the two lines below.
[ -n "${LOCAL_RANK:-}" ] && exec python -u "$0" "$@"
exec deepspeed "$0" "$@"
: <<"# end of Python" #"""
import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # the repository root, not launch/
    from finetune.__main__ import main

    main()
# end of Python
