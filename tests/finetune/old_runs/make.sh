#!/usr/bin/env bash
# Makes artefacts.tar.xz: what the code of one commit writes, for test_old_runs.py.
#   bash tests/finetune/old_runs/make.sh CHECKOUT      CHECKOUT: a clone at commit 265d405
# Everything is drawn by `shards sample`; models are random or a few steps old. Two minutes.
set -euo pipefail
checkout="$(realpath "$1")" here="$(realpath "$(dirname "$0")")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
mkdir "$work/old"
cd "$work/old"
export PYTHONPATH="$checkout" FUSION_MRE_CACHE="$work/cache" OMP_NUM_THREADS=1

python -m shards sample "$work/sample" --pairs 80 --rows 24,10,10 --size 32
mv "$work/sample/mnre" "$work/sample/twitter2017" "$work/sample/relations.tsv" .
# 350 tweets are drawn whatever is asked for; a dozen of each split do.
python - <<'PYTHON'
from pathlib import Path

folder, used = Path("twitter2017"), set()
for path in folder.glob("*.txt"):
    blocks = path.read_text().strip().split("\n\n")[:12]
    path.write_text("\n\n".join(blocks) + "\n\n")
    used |= {block.partition("\n")[0].removeprefix("IMGID:") for block in blocks}
for picture in Path("twitter2017").rglob("*.jpg"):
    if picture.stem not in used:
        picture.unlink()
PYTHON
python -m shards build newsclippings --news-clippings "$work/sample/news_clippings" \
    --visual-news "$work/sample/visual_news" --split train --out "$work/shards"

python -m pretrain --config "$checkout/pretrain/configs/tiny.yaml" --run_dir pretraining \
    --data.train "$work/shards" --loss.coe 0 --loss.cir 0 --optim.steps 2 --checkpoint.every 1 \
    --batch.global_size 16 --model.vocab_size 150 --model.hidden_size 16 \
    --model.num_attention_heads 2 --model.intermediate_size 16 --model.text_layers 1 \
    --model.fusion_layers 1 --model.image_size 16 --model.vision_hidden_size 16 \
    --model.vision_layers 1 --model.vision_heads 2 --model.projection_size 8
model=pretraining/model

common=(--optim.epochs 2 --optim.global_batch_size 8 --max_length 60 --seeds 1)
resnet=(--model.vision resnet10t --model.vision_random true --model.vision_width 2 --model.image_size 64)
train() {  # NAME METHOD TASK OPTION…
    python -m finetune train --out "runs/$1" --method "$2" --task "$3" --data "$3" "${common[@]}" "${@:4}"
}
train mtb mtb mnre --init $model --images none --captions caption
train promu promu mnre --init $model --seeds 1,2
train hvpnet hvpnet mnre --init $model "${resnet[@]}" --model.profile legacy \
    --model.prompt_width 8 --model.freeze true --regions mnre
train tmr tmr mnre --init $model "${resnet[@]}" --model.generated none --regions mnre
train camim_tmr camim_tmr mnre --init $model "${resnet[@]}" --model.generated none \
    --model.mi_pair tf --captions caption --max_caption_length 30 --regions mnre
train mkgformer mkgformer mnre --init $model --model.vision random --model.vision_patch 8 \
    --model.vg_size 16 --model.od_size 8 --model.fusion_layers 1 --model.preset legacy \
    --regions mnre
train focalmre focalmre mnre --init $model --regions mnre --model.vision init
train dgfpt dgfpt mnre --init $model --regions mnre --captions caption
train bert_crf bert_crf twitter2017 --init $model --images none
train promu_entities promu twitter2017 --init $model

# Cut off after the first of two epochs; `whole` is the same run, not cut off.
train whole mtb mnre --architecture $model --images none
python - "$model" <<'PYTHON'
import sys

from finetune import train
from finetune.__main__ import main

save = train.SeedRun.save_progress

def cut_off(seed_run):
    save(seed_run)
    raise KeyboardInterrupt

train.SeedRun.save_progress = cut_off
try:
    main(
        "train --out runs/unfinished --method mtb --task mnre --data mnre --optim.epochs 2 "
        "--optim.global_batch_size 8 --max_length 60 --seeds 1 --images none".split()
        + ["--architecture", sys.argv[1]]
    )
except (KeyboardInterrupt, SystemExit):
    pass
PYTHON

python -m finetune view align-noise --data mnre --task mnre --ratio 0.5 --scope test --out view.jsonl
python -m finetune evaluate runs/promu --data mnre --view view.jsonl
cat >study.yaml <<'YAML'
settings: {task: mnre, init: $model, optim.epochs: 1, optim.global_batch_size: 8, max_length: 60}
runs:
  text: {method: mtb, images: none}
  picture: {method: promu}
tables:
  Wrong pictures:
    none: {}
    "50 %": {tool: align-noise, ratio: 0.5}
YAML
python -m finetune study study.yaml --data mnre --model $model --out study --seeds 1
rm -rf study/cache
python -m finetune report runs/mtb runs/promu runs/hvpnet runs/bert_crf --out report/report.md
find report -not -name report.md -type f -delete

cat >posts.jsonl <<'JSON'
{"text": "Ann Bo with the Arc Corp, what a photo", "head": "Ann Bo", "tail": "Arc Corp", "image": "PICTURE", "caption": "a person near a tower"}
{"text": "great evening: Ann Bo, Arc Gala", "head": "Ann Bo", "tail": "Arc Gala"}
JSON
sed -i "s|PICTURE|$(cd mnre && find img_org/test -name '*.jpg' | sort | head -1 | sed 's|^|mnre/|')|" posts.jsonl
for run in mtb promu hvpnet mkgformer camim_tmr bert_crf; do
    python -m finetune predict runs/$run --input posts.jsonl --out answers/$run.jsonl --regions none
done
rm -f answers/*.settings.json

find . -name 'events.out.tfevents*' -delete
tar --sort=name --mtime=2026-01-01 --owner=0 --group=0 --numeric-owner -cJf "$here/artefacts.tar.xz" .
ls -l "$here/artefacts.tar.xz"
