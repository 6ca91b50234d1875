"""Time and memory of converting a base-size ZeRO-2 checkpoint:

    python tests/bench/bench_convert.py [FOLDER]

Writes one training step of BERT-base + ViT-B/16 with DeepSpeed (about 4 GB in FOLDER, default a
temporary one), then converts it in a process of its own. Anonymous memory is what a machine must
have; resident memory also counts pages of mapped files, which the kernel takes back at will.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EMPTY = "import pretrain.convert"


def write_checkpoint(run: Path) -> None:
    """`run` as the trainer leaves it: architecture and one complete checkpoint."""
    os.environ |= {
        "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29512", "DS_ACCELERATOR": "cpu",
    }  # fmt: skip
    from pretrain import engine as engines
    from pretrain.checkpoint.run import RunCheckpoints
    from pretrain.data.tokenizer import learn_tokenizer
    from pretrain.model.config import FusionEncoderConfig
    from pretrain.model.fusion_encoder import FusionEncoder
    from pretrain.model.promu import HeadsConfig, LossConfig, Promu
    from pretrain.optim import adamw, linear_schedule, parameter_groups

    engines.start("deepspeed")
    model = Promu(FusionEncoder(FusionEncoderConfig()), HeadsConfig(), LossConfig(coe=0, cir=0))

    def build(module):
        groups = parameter_groups(module.named_parameters(), lr=1e-4, weight_decay=1e-3)
        optimizer = adamw(groups)
        return optimizer, linear_schedule(optimizer, 1, 10)

    tuning = run / "zero2.json"
    run.mkdir(parents=True, exist_ok=True)
    tuning.write_text(json.dumps({"zero_optimization": {"stage": 2}}))
    engine = engines.DeepSpeedEngine(
        model, build, precision="fp32", accumulation=1, clip=1.0, micro_batch_size=1,
        tuning=str(tuning),
    )  # fmt: skip
    architecture = run / "architecture"
    architecture.mkdir(exist_ok=True)
    (architecture / "config.json").write_text(json.dumps(model.released_config()))
    learn_tokenizer(["a picture of two dogs"] * 3, 60).save_pretrained(architecture)
    RunCheckpoints(run, keep=1).save(engine, 1, 1)


def peak(command: list[str]) -> tuple[float, float, float]:
    """(seconds, peak resident MB, peak anonymous MB) of a process."""
    started = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    resident = anonymous = 0
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        fields = dict(line.split(":", 1) for line in status.splitlines())
        if "VmHWM" in fields:
            resident = max(resident, int(fields["VmHWM"].split()[0]))
            anonymous = max(anonymous, int(fields["RssAnon"].split()[0]))
        time.sleep(0.005)
    if process.wait():
        raise SystemExit(f"{command}: exit code {process.returncode}")
    return time.monotonic() - started, resident / 1024, anonymous / 1024


def main(folder: Path) -> None:
    run = folder / "run"
    if not run.is_dir():
        subprocess.run([sys.executable, __file__, "--write", str(run)], check=True)
    empty = peak([sys.executable, "-c", EMPTY])
    out = folder / "model"
    full = peak([sys.executable, "-m", "pretrain.convert", str(run), str(out)])
    model = (out / "model.safetensors").stat().st_size / 2**20
    print(f"model {model:.0f} MB, converted in {full[0]:.1f} s (imports alone {empty[0]:.1f} s)")
    for name, alone, whole in zip(("resident", "anonymous"), empty[1:], full[1:], strict=True):
        added = (whole - alone) / model
        print(
            f"peak {name}: {whole:.0f} MB = {whole / model:.2f} x the model; imports alone "
            f"{alone:.0f} MB, so converting adds {added:.2f} x"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_checkpoint(Path(sys.argv[2]))
    elif sys.argv[1:]:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary))
