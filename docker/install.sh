#!/usr/bin/env bash
# The build steps of docker/Dockerfile, each also on a bare Debian or Ubuntu with Python 3.11 or newer:
#   bash docker/install.sh system    packages (root)
#   bash docker/install.sh user      the account that runs (root)
#   bash docker/install.sh python    virtual environment $VENV with docker/requirements.lock
#   bash docker/install.sh project   this checkout into it
#   bash docker/install.sh check     imports everything, trains one step on synthetic pairs
set -euo pipefail
cd "$(dirname "$0")/.."
VENV="${VENV:-/opt/venv}"
RUN_USER="${RUN_USER:-fusion}" RUN_UID="${RUN_UID:-10001}"

system() { # gcc and Python's headers: Triton compiles; pdsh and ssh: `deepspeed --hostfile`
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -q
    apt-get install -y -q --no-install-recommends ca-certificates gcc libc6-dev python3 \
        python3-dev python3-venv openssh-client pdsh iproute2 tini
    rm -rf /var/lib/apt/lists/*
}

user() {
    id "$RUN_USER" >/dev/null 2>&1 ||
        useradd --create-home --uid "$RUN_UID" --user-group --shell /bin/bash "$RUN_USER"
    for folder in ${RUN_FOLDERS:-/runs /data}; do
        install -d -o "$RUN_USER" -g "$RUN_USER" "$folder"
    done
}

python() {
    "${PYTHON:-python3}" -m venv "$VENV"
    # The lock is complete: pip resolves nothing, and a package missing in it fails the check.
    "$VENV/bin/python" -m pip install --no-cache-dir --no-deps -q -r docker/requirements.lock
    "$VENV/bin/python" -m pip check
}

project() {
    "$VENV/bin/python" -m pip install --no-cache-dir --no-deps --no-build-isolation -q --editable .
    "$VENV/bin/python" -m pip check
}

check() {
    local work
    work="$(mktemp -d)"
    export PATH="$VENV/bin:$PATH" DS_ACCELERATOR="${DS_ACCELERATOR:-cpu}" OMP_NUM_THREADS=1
    "$VENV/bin/python" -m shards sample "$work/corpora" --pairs 80 --size 32 >/dev/null
    "$VENV/bin/python" -m shards build newsclippings --split train --out "$work/train" \
        --news-clippings "$work/corpora/news_clippings" \
        --visual-news "$work/corpora/visual_news" >/dev/null
    "$VENV/bin/python" -m shards detect "$work/train" --detector file \
        --boxes "$work/corpora/visual_news/objects.jsonl" >/dev/null
    "$VENV/bin/deepspeed" --num_accelerators 1 --master_port "${PORT:-29555}" launch/pretrain.sh \
        --config pretrain/configs/tiny.yaml --run_dir "$work/run" --data.train "$work/train" \
        --loss.coe 0 --loss.cir 0 --batch.global_size 8 --optim.steps 1
    rm -r "$work"
    echo "check passed"
}

case "${1:-}" in
system | user | python | project | check) "$1" ;;
*)
    sed -n 2,7p "$0" >&2
    exit 2
    ;;
esac
