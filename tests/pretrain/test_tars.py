"""Pre-training on other people's tars, read in place."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from webdataset import ShardWriter

from pretrain.config import DataConfig, PretrainConfig
from pretrain.data.pairs import PairDataset, open_reader
from pretrain.data.tokenizer import learn_tokenizer
from pretrain.tracking import read_metrics
from pretrain.train import train
from shards.images import decoded
from shards.options import parse_config

TINY = """
    --config pretrain/configs/tiny.yaml --config pretrain/configs/prompter.yaml
    --engine.kind single --model.hidden_size 16 --model.num_attention_heads 2
    --model.intermediate_size 32 --model.text_layers 1 --model.vocab_size 60
    --model.image_size 16 --model.vision_hidden_size 16 --model.vision_heads 2
    --model.vision_layers 1 --model.projection_size 8 --batch.global_size 4
    --data.max_length 16 --data.steps_per_decode 2 --log.every 1
""".split()  # noqa: SIM905


@pytest.fixture
def tars(tmp_path, monkeypatch) -> str:
    """12 pairs, of which 3 is a PNG and 4 lies on its side, and a caption without a picture."""
    monkeypatch.setenv("FUSION_MRE_CACHE", str(tmp_path / "cache"))
    for folder in ("raw", "pictures"):
        (tmp_path / folder).mkdir()
    with ShardWriter(str(tmp_path / "raw" / "%05d.tar"), maxcount=5, verbose=0) as sink:
        for number in range(12):
            ending, exif = "png" if number == 3 else "jpg", Image.Exif()
            if number == 4:
                exif[0x0112] = 6
            pixels = np.random.default_rng(number).integers(0, 255, (4, 6, 3), dtype=np.uint8)
            path = tmp_path / "pictures" / f"{number}.{ending}"
            Image.fromarray(pixels).resize((48, 32)).save(path, exif=exif)
            sink.write({"__key__": f"v1.{number:04d}", ending: path.read_bytes(),
                        "txt": f"text {number}"})  # fmt: skip
        sink.write({"__key__": "lonely", "txt": "no picture"})
    return str(tmp_path / "raw" / "{00000..00002}.tar")


def test_batches_show_the_pictures(tars, tmp_path):
    reader = open_reader(tars, teacher=False)
    captions = [caption for n in range(3) for caption in reader.captions(n)]
    dataset = PairDataset(reader, learn_tokenizer(captions, 200), DataConfig(train=tars),
                          image_size=32, patch_size=8, seed=0, augment=False)  # fmt: skip
    batch = dataset.__getitems__([(0, 0, row) for row in range(5)])
    assert batch.matched.all() and batch.keys[4] == "00000/v1.0004"
    for number, view in enumerate(batch.pixel_values.numpy()):
        ending = "png" if number == 3 else "jpg"
        picture = decoded(tmp_path / "pictures" / f"{number}.{ending}").resize(
            (32, 32), Image.Resampling.BICUBIC
        )
        difference = np.abs(view.transpose(1, 2, 0) - np.asarray(picture).astype(int))
        assert difference.mean() < (15 if number in (3, 4) else 3)  # encoded anew, or as it is


def test_a_run_trains_and_goes_on(tars, tmp_path, capsys):
    run_dir = tmp_path / "run"

    def run(steps: int, *more: str) -> Path | None:
        words = [*TINY, "--run_dir", str(run_dir), "--data.train", tars, "--data.val", tars,
                 "--optim.steps", str(steps), "--log.validate_every", "4", *more]  # fmt: skip
        return train(parse_config(PretrainConfig, words, prog="p", description="", example=""))

    assert run(4, "--data.workers", "1")
    told = capsys.readouterr().out
    assert "data.val is data.train" in told
    assert "data.train: 3 tars: 13 keys = 12 pairs + 1 rejects; 1 x no picture of this key" in told
    lines = (run_dir / "data.train.rejects.jsonl").read_text().splitlines()
    assert [json.loads(line)["where"] for line in lines] == ["00002.tar: lonely"]
    assert [line["step"] for line in read_metrics(run_dir / "metrics.jsonl") if "loss" in line]
    assert run(6, "--data.workers", "1", "--extend", "true")  # goes on, from the same tables
