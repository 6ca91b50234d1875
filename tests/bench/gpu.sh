#!/usr/bin/env bash
# bash tests/bench/gpu.sh OUT [--minutes 8] [--device cuda|cpu] [--wheels DIR]
#
# Correctness, speed and what costs it, on one CUDA device, within the minutes: OUT/gpu.json and
# OUT/gpu.md. Needs python3 (or PYTHON) with torch, torchvision, transformers >= 5 and timm; the rest
# comes out of DIR, filled by gpu_wheels.sh; no network. `--device cpu` is the rehearsal: the same
# code at small sizes.
set -euo pipefail
usage='usage: bash tests/bench/gpu.sh OUT [--minutes 8] [--device cuda|cpu] [--wheels DIR]'
out=${1:?$usage}; shift
minutes=8 device=cuda wheels=
while [ $# -gt 0 ]; do
    case $1 in
        --minutes) minutes=${2:?$usage} ;;
        --device) device=${2:?$usage} ;;
        --wheels) wheels=${2:?$usage} ;;
        *) echo "$1? $usage" >&2; exit 2 ;;
    esac
    shift 2
done
started=$(date +%s)
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
mkdir -p "$out"
out=$(cd "$out" && pwd)
path=$root:$root/tests
if [ -n "$wheels" ]; then
    # Unpacked, not installed: nothing of the machine's own environment changes.
    rm -rf "$out/packages"
    for wheel in "$wheels"/*.whl; do
        "$python" -m zipfile -e "$wheel" "$out/packages"
    done
    path=$path:$out/packages
    # The checkout is not installed either, and runs record its version.
    info=$out/packages/fusion_mre-0.dist-info
    mkdir -p "$info"
    version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/pyproject.toml")
    printf 'Metadata-Version: 2.1\nName: fusion-mre\nVersion: %s\n' "$version" >"$info/METADATA"
fi
[ "$device" = cuda ] || export CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu OMP_NUM_THREADS=1
export PYTHONPATH=$path HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
cd "$root"
exec "$python" -m bench.gpu.run "$out" --minutes "$minutes" --device "$device" --started "$started"
