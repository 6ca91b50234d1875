#!/usr/bin/env bash
# The whole system on synthetic corpora, in minutes on 2 cores:
#   bash launch/quickstart.sh [WORKDIR]          (default: ./quickstart; running it again resumes)
# environment -> corpora -> shards -> prompter -> teacher column -> pre-training -> fine-tuning with
# and without the checkpoint -> report.md, summary.json.
set -euo pipefail
work="$(realpath -m "${1:-quickstart}")"
cd "$(dirname "$0")/.."
source launch/environment.sh lexicon
mkdir -p "$work/logs"
# Earlier calls count: a quickstart that was cut off took as long as all of its parts.
started=$(($(date +%s) - $(cat "$work/seconds" 2>/dev/null || echo 0)))
trap 'echo $(($(date +%s) - started)) >"$work/seconds"
for job in $(jobs -p); do kill -- "-$job" 2>/dev/null || true; done' EXIT
say() { printf '\n== %s (%d s)\n' "$*" "$(($(date +%s) - started))"; }
# Two functions beside each other, half of the cores each; what they print goes to files of their names.
beside() {
    local name jobs=() failed=() half=$((cores < 4 ? 1 : cores / 2))
    set -m # each in a process group of its own, which ends as a whole with this script
    for name in "$@"; do
        OMP_NUM_THREADS="${OMP_NUM_THREADS:-$half}" "$name" >"$work/logs/$name.txt" 2>&1 &
        jobs+=($!)
    done
    set +m
    for name in "$@"; do
        wait "${jobs[0]}" || failed+=("$name")
        jobs=("${jobs[@]:1}")
    done
    for name in "${failed[@]}"; do
        printf '%s failed; the end of %s:\n' "$name" "$work/logs/$name.txt" >&2
        tail -n 20 "$work/logs/$name.txt" >&2
    done
    [ ${#failed[@]} = 0 ]
}

corpora="$work/corpora" shards="$work/shards"
read -r gpus cores precision < <(python -c '
import torch
from pretrain.numerics import precision_for
from shards.threads import cores
cuda = torch.cuda.is_available()
print(int(cuda), cores(), "auto" if cuda else precision_for("auto", torch.device("cpu")))')
say "synthetic corpora: $corpora"
python -m shards sample "$corpora" --workers "$cores"

say "shards: $shards"
build() {
    python -m shards build newsclippings --news-clippings "$corpora/news_clippings" \
        --visual-news "$corpora/visual_news" --split "$1" --out "$shards/$1"
    python -m shards detect "$shards/$1" --detector file --boxes "$corpora/visual_news/objects.jsonl"
}
build_train() {
    build train
    python -m shards nouns "$shards/train" --tagger lexicon --size 30 --out "$work/entities.tsv"
}
build_val() { build val; }
beside build_train build_val

# Two DeepSpeed ranks where there are two cores and no GPU; with GPUs, one rank each.
ranks=()
if [ "$gpus" = 0 ]; then
    export DS_ACCELERATOR=cpu
    ranks=(--num_accelerators $((cores < 2 ? 1 : 2)))
fi
# Half of each picture's patches are seen until the last steps.
pretrain() {
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    deepspeed "${ranks[@]}" --master_port "$port" launch/pretrain.sh --config pretrain/configs/tiny.yaml "$@" \
        --data.train "$shards/train" --data.val "$shards/val" --data.keep_patches 0.5 \
        --engine.precision "$precision" --engine.deepspeed launch/zero0.json
}

say "stage 1, the prompter: $work/prompter"
pretrain --config pretrain/configs/prompter.yaml --run_dir "$work/prompter" \
    --optim.steps 300 --data.unmasked_steps 50
label_train() { python -m pretrain label "$shards/train" --prompter "$work/prompter/model"; }
label_val() { python -m pretrain label "$shards/val" --prompter "$work/prompter/model"; }
beside label_train label_val

say "stage 2, four losses: $work/pretrain"
pretrain --run_dir "$work/pretrain" --optim.steps 600 --data.unmasked_steps 100 \
    --model.init "$work/prompter/model" --prompter.source "$work/prompter/model" \
    --prompter.entities "$work/entities.tsv" --prompter.relations "$corpora/relations.tsv"
model="$work/pretrain/model"

finetune() {
    python -m finetune train --task mnre --data "$corpora/mnre" --out "$work/finetune/$1" \
        --config finetune/configs/sample/mnre.yaml --engine.precision "$precision" "${@:2}"
}
few=(--fraction 0.1 --optim.evaluate_every 3)
# Random weights need twice the rate and more epochs before pictures are of use.
finetune_scratch() {
    finetune promu_scratch --method promu --architecture "$model" --optim.lr 1e-3 --optim.epochs 16
}
finetune_others() {
    finetune mtb --method mtb --architecture "$model"
    finetune promu_pretrained --method promu --init "$model"
    finetune promu_scratch_10pct --method promu --architecture "$model" "${few[@]}"
    finetune promu_pretrained_10pct --method promu --init "$model" "${few[@]}"
}
say "fine-tune, five runs: $work/finetune"
beside finetune_scratch finetune_others
grep --no-filename 'dev F1\|^ *test: f1' "$work/logs/finetune_scratch.txt" "$work/logs/finetune_others.txt" || true

say "report"
python -m finetune report "$work"/finetune/* --pretraining "$work/pretrain" \
    --out "$work/report.md" --summary "$work/summary.json" --seconds $(($(date +%s) - started))
say "done: $work/report.md, $work/summary.json, checkpoint $model"
