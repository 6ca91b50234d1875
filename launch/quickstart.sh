#!/usr/bin/env bash
# The whole system on synthetic corpora, in minutes on 2 cores:
#   bash launch/quickstart.sh [WORKDIR]          (default: ./quickstart; running it again resumes)
# environment -> corpora -> shards -> prompter -> teacher column -> pre-training -> fine-tuning with
# and without the checkpoint -> report.md, summary.json.
set -euo pipefail
work="$(realpath -m "${1:-quickstart}")"
cd "$(dirname "$0")/.."
source launch/environment.sh lexicon
mkdir -p "$work"
# Earlier calls count: a quickstart that was cut off took as long as all of its parts.
started=$(($(date +%s) - $(cat "$work/seconds" 2>/dev/null || echo 0)))
trap 'echo $(($(date +%s) - started)) >"$work/seconds"' EXIT
say() { printf '\n== %s (%d s)\n' "$*" "$(($(date +%s) - started))"; }

corpora="$work/corpora" shards="$work/shards"
say "synthetic corpora: $corpora"
python -m shards sample "$corpora"

say "shards: $shards"
for split in train val; do
    python -m shards build newsclippings --news-clippings "$corpora/news_clippings" \
        --visual-news "$corpora/visual_news" --split $split --out "$shards/$split"
    python -m shards detect "$shards/$split" --detector file --boxes "$corpora/visual_news/objects.jsonl"
done
python -m shards nouns "$shards/train" --tagger lexicon --size 30 --out "$work/entities.tsv"

# Two DeepSpeed ranks where there are two cores and no GPU; with GPUs, one rank each.
ranks=()
if ! python -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
    export DS_ACCELERATOR=cpu
    cores=$(nproc)
    ranks=(--num_accelerators $((cores < 2 ? 1 : 2)))
fi
pretrain() {
    local port
    port=$(python -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
    deepspeed "${ranks[@]}" --master_port "$port" launch/pretrain.sh --config pretrain/configs/tiny.yaml "$@" \
        --data.train "$shards/train" --data.val "$shards/val"
}

say "stage 1, the prompter: $work/prompter"
pretrain --config pretrain/configs/prompter.yaml --run_dir "$work/prompter" --optim.steps 300
for split in train val; do
    python -m pretrain label "$shards/$split" --prompter "$work/prompter/model"
done

say "stage 2, four losses: $work/pretrain"
pretrain --run_dir "$work/pretrain" --optim.steps 600 --model.init "$work/prompter/model" \
    --prompter.source "$work/prompter/model" --prompter.entities "$work/entities.tsv" \
    --prompter.relations "$corpora/relations.tsv"
model="$work/pretrain/model"

finetune() {
    say "fine-tune: $1"
    python -m finetune train --task mnre --data "$corpora/mnre" --out "$work/finetune/$1" \
        --config finetune/configs/sample/mnre.yaml "${@:2}"
}
finetune mtb --method mtb --architecture "$model"
finetune promu_scratch --method promu --architecture "$model"
finetune promu_pretrained --method promu --init "$model"
few=(--fraction 0.1 --optim.evaluate_every 3)
finetune promu_scratch_10pct --method promu --architecture "$model" "${few[@]}"
finetune promu_pretrained_10pct --method promu --init "$model" "${few[@]}"

say "report"
python -m finetune report "$work"/finetune/* --pretraining "$work/pretrain" \
    --out "$work/report.md" --summary "$work/summary.json" --seconds $(($(date +%s) - started))
say "done: $work/report.md, $work/summary.json, checkpoint $model"
