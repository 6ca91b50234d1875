"""Settings out of their range are refused where they are read, in one line that names them."""

import pytest

from pretrain.config import PretrainConfig
from shards.files import InputError
from shards.options import parse_config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("data.flip", "1.5"),
        ("data.photometric", "-0.1"),
        ("data.min_visible", "2"),
        ("data.crop_scale", "[0.9, 0.2]"),
        ("data.workers", "-1"),
        ("data.streams", "0"),
        ("data.steps_per_decode", "0"),
        ("data.unmasked_steps", "5"),
        ("optim.steps", "0"),
        ("optim.lr", "-1e-4"),
        ("optim.lr", "1e400"),
        ("loss.itm", "-1"),
        ("loss.cit", "1e400"),
        ("seed", "-1"),
        ("optim.weight_decay", "-1"),
        ("optim.clip", "-1"),
        ("optim.betas", "[0.9, 1.0]"),
        ("optim.warmup_ratio", "1.1"),
        ("optim.layer_decay", "1.2"),
        ("checkpoint.every", "0"),
        ("log.every", "0"),
        ("optim.learning_rate", "1"),
    ],
)
def test_out_of_range(setting, value):
    words = ["--run_dir", "r", "--data.train", "s", "--loss.coe", "0", "--loss.cir", "0"]
    parse_config(PretrainConfig, words, prog="p", description="", example="")
    with pytest.raises(InputError) as refused:
        parse_config(
            PretrainConfig, [*words, f"--{setting}", value], prog="p", description="", example=""
        )
    message = str(refused.value)
    assert setting.rpartition(".")[2] in message and "\n" not in message


def test_patches_that_no_step_drops_are_refused():
    words = ["--run_dir", "r", "--data.train", "s", "--loss.coe", "0", "--loss.cir", "0"]
    words += ["--data.keep_patches", "0.5", "--optim.steps", "9", "--data.unmasked_steps"]
    parse_config(PretrainConfig, [*words, "8"], prog="p", description="", example="")
    with pytest.raises(InputError, match=r"data\.unmasked_steps leaves no step"):
        parse_config(PretrainConfig, [*words, "9"], prog="p", description="", example="")


@pytest.mark.parametrize(
    ("options", "losses"),
    [
        ([], "loss.itm and loss.coe and loss.cir"),
        (["--loss.coe", "0"], "loss.itm and loss.cir"),
        (["--loss.itm", "0", "--prompter.mode", "online_clean"], "loss.coe"),
        (["--loss.itm_hard_negatives", "true", "--loss.coe", "0", "--loss.cir", "0"], ""),
        (["--loss.itm_batch_negatives", "true", "--loss.coe", "0", "--loss.cir", "0"], ""),
    ],
)
@pytest.mark.parametrize("setting", ["data.train", "data.val"])
def test_tars_as_they_are_serve_some_losses(options, losses, setting):
    words = ["--run_dir", "r", "--data.train", "s", f"--{setting}", "laion/{00..99}.tar", *options,
             "--prompter.source", "m", "--prompter.entities", "e"]  # fmt: skip

    def parse() -> None:
        parse_config(PretrainConfig, words, prog="p", description="", example="")

    if losses:
        with pytest.raises(InputError, match=f"set {losses} to 0, or .*webdataset --tars 'laion"):
            parse()
    else:
        parse()
