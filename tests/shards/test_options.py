"""Options of all commands: one dialect, the command line wins, names of the field are known."""

from dataclasses import dataclass, field, make_dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from shards.files import InputError
from shards.options import (
    check_bounds,
    dump_config,
    look_ahead,
    parse_config,
    positive,
    refuse_negative,
    shipped,
)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section."""

    lr: float = 0.1
    """Rate."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Two numbers."""
    freeze: tuple[Literal["text", "vision"], ...] = ()
    """Several words."""
    prompts: tuple[Literal["1", "2"], ...] = ("1",)
    """Words that look like numbers."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """A command."""

    POSITIONAL: ClassVar = ("first", "more")
    first: Path
    """A place."""
    more: tuple[Path, ...] = ()
    """Places."""
    max_missing: int = 0
    """A number."""
    check_all: bool = False
    """A switch."""
    text: str | None = None
    """A text."""
    width: int | None = None
    """A number, or none."""
    share: Fraction = Fraction(1)
    """Exactly."""
    part: Part = field(default_factory=Part)
    """A section."""


def parsed(*words: str) -> Options:
    return parse_config(Options, words, prog="p", example="e")


@pytest.mark.parametrize("word", ["--max-missing", "--max_missing"])
def test_dashes_and_underscores(word):
    assert parsed("a", word, "3").max_missing == parsed("a", f"{word}=3").max_missing == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-missing", "-1"], "--max_missing -1: must not be negative"),
        (["--width", "-3"], "--width -3: must not be negative"),
        (["--part.lr", "-0.1"], "--part.lr -0.1: must not be negative"),
    ],
)
def test_no_number_is_negative(words, message):
    with pytest.raises(InputError, match=message):
        parsed("a", *words)


def test_a_section_of_another_package_may_hold_negative_numbers():
    def made(module, name, value):
        section = make_dataclass("Section", [(name, type(value), value)], frozen=True)
        section.__module__ = module
        return section()

    refuse_negative(made("ours.config", "model", made("theirs.settings", "layer", -1)))
    with pytest.raises(InputError, match=r"^--model\.layer -1: must not be negative"):
        refuse_negative(made("ours.config", "model", made("ours.settings", "layer", -1)))


def test_counts_are_whole_numbers_above_zero():
    positive(jobs=1, size=None)
    for count in (0, -5, 2.5, "3"):
        with pytest.raises(InputError, match=f"--jobs {count}: must be a positive whole number"):
            positive(size=3, jobs=count)
    with pytest.raises(InputError, match=r"^top_k 0: "):
        positive("", top_k=0)


def test_plain_words_are_places_in_order():
    options = parsed("a", "--max-missing", "2", "b", "c")
    assert (options.first, options.more) == (Path("a"), (Path("b"), Path("c")))
    assert parsed("--first", "a").more == ()
    assert parsed("a", "runs/lr=1,seeds=2").more == (Path("runs/lr=1,seeds=2"),)  # as sweeps do


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], False),
        (["--check-all"], True),
        (["--check_all", "true"], True),
        (["--check_all=false"], False),
        (["--check-all", "--no-check-all"], False),
    ],
)
def test_switches(words, value):
    assert parsed("a", *words).check_all is value


@pytest.mark.parametrize(
    "words",
    [
        ["--part.freeze", "text", "vision"],
        ["--part.freeze", "text,vision"],
        ["--part.freeze", "[text, vision]"],
        ["--part.freeze=text", "--part.freeze", "vision"],
    ],
)
def test_several_values(words):
    assert parsed("a", *words).part.freeze == ("text", "vision")


def test_one_value_of_several_is_taken_plainly():
    part = parsed("a", "--part.freeze", "vision", "--part.prompts", "2").part
    assert (part.freeze, part.prompts) == (("vision",), ("2",))
    assert parsed("a", "--part.prompts", "1,2").part.prompts == ("1", "2")
    assert parsed("a", "--part.prompts", "[2]").part.prompts == ("2",)
    assert parsed("a", "--part.betas", "0.8", "0.9").part.betas == (0.8, 0.9)
    assert parsed("a", "--part.betas", "[0.8, 0.9]").part.betas == (0.8, 0.9)


def test_values_are_what_was_typed():
    assert parsed("a", "--share", "0.29").share * 100 == 29
    assert parsed("a", "--text", "-- no option").text == "-- no option"
    assert parsed("a", "--text=--flag").text == "--flag"
    assert parsed("a", "--text", "it's: [1,").text == "it's: [1,"


def test_options_win_over_files_wherever_they_stand(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("part: {lr: 1, freeze: [text]}\nmax_missing: 1\ntext: one\n")
    two.write_text("max_missing: 2\n")
    files = ["--config", str(one), f"--config={two}"]
    for words in (["--part.lr", "5", *files], [*files, "--part.lr", "5"],
                  ["--config", str(one), "--part.lr=5", "--config", str(two)]):  # fmt: skip
        options = parsed("a", *words)
        assert (options.part.lr, options.max_missing, options.text) == (5, 2, "one")
        assert options.part.freeze == ("text",)
    assert parsed("a", *reversed(files[2:]), *files[:2]).max_missing == 1
    assert parsed("--part.freeze", "vision", *files, "a").part.freeze == ("vision",)


def test_look_ahead_reads_the_command_line_then_the_last_file(tmp_path):
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("text: one\n")
    two.write_text("text: two\n")
    files = ["--config", str(one), "--config", str(two)]
    assert look_ahead("text", files, Options) == "two"
    assert look_ahead("text", ["--text", "three", *files], Options) == "three"
    assert look_ahead("text", ["--text=", *files], Options) == ""
    assert look_ahead("first", files, Options) is None
    for words in (["--text", "one", "--text=two"], ["--text=one", "--text", "two"]):
        assert look_ahead("text", words, Options) == "two"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-mising", "1"], "--max_mising (did you mean --max_missing?)"),
        (["--part.learning_rate", "1"], "(did you mean --part.lr?)"),
        (["--lr", "1"], "(did you mean --part.lr?)"),
        (["--max-missing"], "--max_missing: expected a value"),
        (["--max-missing", "--check-all"], "--max_missing: expected a value"),
        (["--max-missing", "many"], "max_missing"),
        (["--part.freeze", "text", "visoin"], "part.freeze"),
        (["--share", "2/0"], "share"),
        (["--first", ""], "--first: is empty"),
        (["--more", "b", " "], "--more: is empty"),
        (["--text="], "--text: is empty"),
        (["--config", "nowhere"], "--config nowhere: no such file"),
    ],
)
def test_refused_in_one_line(words, said):
    with pytest.raises(InputError) as error:
        parsed("a", *words)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_required_and_unknown_keys_of_files(tmp_path):
    with pytest.raises(InputError, match=r"required: first.*p --help"):
        parsed("--check-all")
    path = tmp_path / "c.yaml"
    path.write_text("part: {learning_rate: 1}\n")
    with pytest.raises(InputError, match=r"did you mean --part\.lr\?"):
        parsed("a", "--config", str(path))


def test_a_dumped_configuration_is_read_again(tmp_path):
    options = parsed("a", "b", "--part.freeze", "vision", "--check-all", "--share", "0.3")
    path = tmp_path / "c.yaml"
    path.write_text(dump_config(options))
    assert parsed("--config", str(path)) == options


def test_shipped_configurations_by_name_from_any_folder(tmp_path, monkeypatch):
    from finetune.config import TrainConfig
    from pretrain.config import PretrainConfig

    monkeypatch.chdir(tmp_path)
    names = ("tiny", "tiny.yaml", "pretrain/configs/tiny.yaml")
    assert len({shipped(PretrainConfig, name) for name in names}) == 1
    assert shipped(TrainConfig, "mnre/promu").endswith("finetune/configs/mnre/promu.yaml")
    with pytest.raises(InputError, match="did you mean mnre/promu"):
        shipped(TrainConfig, "mnre/promo")
    with pytest.raises(InputError, match=r"did you mean .*twitter2017/promu"):
        shipped(TrainConfig, "promu")
    (tmp_path / "tiny").write_text("seed: 3\n")  # a real path wins
    assert shipped(PretrainConfig, "tiny") == "tiny"


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--optim.learning_rate", "optim.lr"),
        ("--learning_rate", "optim.lr"),
        ("--batch_size", "batch.global_size"),
        ("--optim.epochs", "optim.steps"),
        ("--warmup", "optim.warmup_ratio"),
        ("--optim.wd", "optim.weight_decay"),
        ("--output_dir", "run_dir"),
        ("--model_name_or_path", "model.init"),
        ("--seeds", "seed"),
        ("--fp16", "engine.precision"),
        ("--num_workers", "data.workers"),
    ],
)
def test_names_of_the_field_in_pretraining(word, meant):
    from pretrain.config import PretrainConfig

    with pytest.raises(InputError) as error:
        parse_config(PretrainConfig, [word, "1"], prog="p", example="e")
    assert f"(did you mean --{meant}?)" in str(error.value)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--optim.learning_rate", "optim.lr"),
        ("--batch-size", "optim.global_batch_size"),
        ("--optim.steps", "optim.epochs"),
        ("--num_train_epochs", "optim.epochs"),
        ("--output_dir", "out"),
        ("--model_name_or_path", "init"),
        ("--seed", "seeds"),
        ("--bf16", "engine.precision"),
        ("--max_seq_length", "max_length"),
    ],
)
def test_names_of_the_field_in_fine_tuning(word, meant):
    from finetune.config import TrainConfig

    with pytest.raises(InputError) as error:
        parse_config(TrainConfig, [word, "1"], prog="p", example="e")
    assert f"(did you mean --{meant}?)" in str(error.value)


def test_a_wrong_value_of_an_optional_setting_is_told_in_short():
    with pytest.raises(InputError) as refused:
        parsed("a", "--width", "wide")
    told = 'p: Parser key "width": Expected a value of type int or null. Got value: wide'
    assert str(refused.value) == told


def test_files_without_bounds(tmp_path):
    """Refused before anything is built of them."""
    deep, large, fair = (tmp_path / f"{name}.yaml" for name in ("deep", "large", "fair"))
    deep.write_text("a: " + "[" * 50_000)
    large.write_text("#" * ((1 << 20) + 1))
    fair.write_text("a: [[1]]\n")
    with pytest.raises(InputError, match=r"deep\.yaml: line 1: nested deeper than 20 levels"):
        check_bounds(deep)
    with pytest.raises(InputError, match="bytes are no settings"):
        check_bounds(large)
    check_bounds(fair)
