#!/usr/bin/env bash
# accelerate 1.15.0 with datasets 5.2.0: a prepared loader counts only those passes that reach the last batch,
# and sets that count as the epoch of what it reads when a pass begins (`DataLoaderShard.__iter__` in
# accelerate/data_loader.py). So in a loop that leaves each pass after a number of steps, as over a stream
# too long for an epoch, the count stays 0, and every pass gives the same rows in the same order, also if
# `set_epoch` was called on the dataset just before: that is undone. The rest of the stream is never seen.
# SeedableRandomSampler, on which reproducible shuffling rests, does the same; the plain RandomSampler, a
# loader that was not prepared, and passes to the end do not. `set_epoch` on the prepared loader helps.
# Nothing warns. datasets' page on streams tells to call the dataset's set_epoch between epochs
# (huggingface.co/docs/datasets/stream); accelerate's reference of `use_seedable_sampler` asks for
# `set_seed` (huggingface.co/docs/accelerate/package_reference/utilities); that a pass must end, none says.
# Expected: other rows in each pass, as without accelerate. Seen, of 3 passes of 10 rows of 100, left early:
# 10 different rows in all, where the loader that was not prepared gives 26.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet accelerate==1.15.0 datasets==5.2.0 torch==2.13.0 pyarrow==26.0.1 \
    pandas==3.1.1 numpy==2.4.6
cd "$folder"
export HF_HOME="$folder/home" HF_HUB_OFFLINE=1
"$folder/venv/bin/python" - 2> "$folder/log" <<'PY' || { cat "$folder/log" >&2; exit 1; }
import accelerate
import datasets
import torch
from accelerate import Accelerator, DataLoaderConfiguration
from torch.utils.data import DataLoader

print("accelerate", accelerate.__version__, "datasets", datasets.__version__)
assert accelerate.__version__ == "1.15.0" and datasets.__version__ == "5.2.0"
ROWS, STEPS = 100, 2


def passes(prepared, steps=STEPS, stream=True, seedable=False, epoch_of=None):
    """The first rows (two batches of 5) of three passes, each left after so many steps."""
    torch.manual_seed(0)
    rows = datasets.Dataset.from_dict({"row": range(ROWS)})
    if stream:
        rows = rows.to_iterable_dataset().shuffle(seed=0, buffer_size=ROWS)
    loader = DataLoader(rows, batch_size=5, **({} if stream else {"shuffle": True}))
    if prepared:
        settings = DataLoaderConfiguration(use_seedable_sampler=seedable)
        loader = Accelerator(cpu=True, dataloader_config=settings).prepare(loader)
    seen = []
    for epoch in range(3):
        if epoch_of:
            {"dataset": rows, "loader": loader}[epoch_of].set_epoch(epoch)
        one = []
        for step, batch in enumerate(loader, 1):
            one += batch["row"].tolist()
            if step == steps:
                break
        seen.append(one[: 5 * STEPS])
    return seen


seen = {
    "stream, not prepared, dataset.set_epoch": passes(False, epoch_of="dataset"),
    "stream, dataset.set_epoch": passes(True, epoch_of="dataset"),
    "stream, dataset.set_epoch, passes to the end": passes(True, steps=None, epoch_of="dataset"),
    "stream, loader.set_epoch": passes(True, epoch_of="loader"),
    "table, not prepared": passes(False, stream=False),
    "table": passes(True, stream=False),
    "table, seedable sampler": passes(True, stream=False, seedable=True),
    "table, seedable sampler, passes to the end": passes(True, steps=None, stream=False, seedable=True),
}
same = set()
for name, rows in seen.items():
    print(f"{name}: {len(set(sum(rows, [])))} different rows of 30")
    if rows[0] == rows[1] == rows[2]:
        same.add(name)
    else:
        assert rows[0] != rows[1] and rows[1] != rows[2]
assert same == {"stream, dataset.set_epoch", "table, seedable sampler"}
assert seen["stream, not prepared, dataset.set_epoch"] == seen["stream, loader.set_epoch"]
PY
