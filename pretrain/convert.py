"""Any known checkpoint -> model directory, and back out."""

import argparse
import sys
from collections.abc import Callable
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

import torch
from transformers.utils import logging

from pretrain.checkpoint import authors, hub, strict, towers
from pretrain.checkpoint.authors import Imported
from pretrain.checkpoint.card import conversion_card
from pretrain.checkpoint.remote import fetch, is_remote
from pretrain.checkpoint.sources import READERS, detect
from pretrain.model.promu import Promu
from pretrain.prompter.load import write_clip
from shards.command import CommandParser, exit_on_input_error
from shards.files import InputError, atomic_path

_EXAMPLES = """\
examples:
  newest checkpoint of a run, or a certain one
    python -m pretrain.convert runs/base out/model
    python -m pretrain.convert runs/base/checkpoints/step-500 out
  the authors' PROMU, and the prompter of their stage 1
    python -m pretrain.convert model_step_85000.pt out
    python -m pretrain.convert restore.pt teacher --part prompter_image
  first weights: BERT and a ViT; CLIP as a teacher
    python -m pretrain.convert bert-base-uncased out \\
        --vision vit_base_patch16_224.orig_in21k
    python -m pretrain.convert openai/clip-vit-base-patch32 teacher
  back out, and a fine-tuned one of a paper
    python -m pretrain.convert out/model promu.pt --to promu
    python -m pretrain.convert best.pth runs/h/model \\
        --from hvpnet --labels ours_rel2id.json
"""


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """Convert and report."""
    args = _parser().parse_args(sys.argv[1:] if argv is None else argv)
    logging.set_verbosity_error()  # its load reports; what they say is checked and printed here
    logging.disable_progress_bar()
    source = fetch(args.source) if is_remote(args.source) else Path(args.source)
    kind = detect(source, args.source) if args.kind == "auto" else args.kind
    if kind == "clip":  # stays a CLIP: our text tower is a BERT
        print(f"{write_clip(args.out, args.source)} -> {args.out}")
        return report_digest(args.out)
    if kind in fine_tuned():
        print(f"{fine_tuned()[kind].load()(source, args)} -> {args.out}")
        return report_digest(args.out)
    imported, tokenizer = READERS[kind](source, args)
    if args.image_size:
        imported = towers.resize_positions(imported, args.image_size)
    check(imported, args.source)
    facts = {
        "source": f"`{args.source}` ({kind})",
        "tensors": f"{len(imported.state)}, float32",
        "parameters": f"{sum(tensor.numel() for tensor in imported.state.values()):,}",
    }
    _WRITERS[args.target](args.out, imported, tokenizer, facts)
    for note in imported.notes:
        print(note)
    print(f"{len(imported.state)} tensors, float32, {facts['parameters']} parameters -> {args.out}")
    report_digest(args.out)


def report_digest(out: str) -> None:
    """Print the SHA-256 of what was written (of an upload it was compared already)."""
    if not is_remote(out):
        path = Path(out) / strict.WEIGHTS_NAME if Path(out).is_dir() else Path(out)
        print(f"sha256 {strict.digest(path)}  {path}")


def fine_tuned() -> dict[str, EntryPoint]:
    """Readers of other projects' fine-tuned checkpoints; `finetune` registers them, because
    nothing here imports it."""
    return {entry.name: entry for entry in entry_points(group="fusion_mre.converters")}


def check(imported: Imported, name: str) -> None:
    """Raises: InputError unless the tensors are finite and exactly those of the configuration."""
    strict.check_values(imported.state, name)
    strict.check_size(imported.config, imported.state, name)
    try:
        with torch.device("meta"):  # shapes only: the model is not built a second time
            expected = Promu.from_config(imported.config).released_state()
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{name}: its configuration describes no model of ours: {error}"
        ) from error
    if "heads.temperature" not in imported.state:
        del expected["heads.temperature"]
    strict.check_fits(expected, imported.state, name)


def _write_model(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> None:
    card = imported.card or conversion_card(facts, imported.notes)
    hub.save_model_directory(
        out, config=imported.config, state=imported.state, tokenizer=tokenizer, card=card
    )


def _write_promu(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> None:
    state = authors.to_promu(imported.config, imported.state)
    with atomic_path(out) as temporary:
        torch.save(state, temporary)


def _write_bert(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> None:
    encoder = towers.encoder_of(imported)

    def write(folder: Path) -> None:
        hub.stack_text_layers(encoder).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    hub.save_directory(out, write)


def _write_timm(out: str, imported: Imported, tokenizer: Any, facts: dict[str, Any]) -> None:
    hub.save_directory(out, partial(towers.write_timm, imported=imported))


_WRITERS: dict[str, Callable[[str, Imported, Any, dict[str, Any]], None]] = {
    "model": _write_model,
    "promu": _write_promu,
    "bert": _write_bert,
    "timm": _write_timm,
}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m pretrain.convert",
        description="Convert a checkpoint into a model directory, or a model directory back out.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", metavar="SRC", help="file, run, checkpoint, directory, hub id or fsspec URL")
    add("out", metavar="OUT", help="directory, file for --to promu, or fsspec URL")
    add(
        "--from",
        dest="kind",
        default="auto",
        choices=("auto", *READERS, "clip", *sorted(fine_tuned())),
        metavar="KIND",
        help="what SRC is: %(choices)s (default: found out)",
    )
    add(
        "--to",
        dest="target",
        default="model",
        choices=tuple(_WRITERS),
        help="model directory; the authors' layout; a tower alone (default: model)",
    )
    add("--vision", metavar="VIT", help="timm name or directory of the ViT for a BERT or ALPRO")
    add(
        "--tokenizer",
        default="bert-base-uncased",
        metavar="DIR",
        help="tokenizer of a file that has none; for a fine-tuned one its whole BERT directory or "
        "id (default: bert-base-uncased)",
    )
    add(
        "--text-layers",
        type=int,
        metavar="N",
        help="where a BERT is cut: layers that read the text alone (default: half of them)",
    )
    add(
        "--encoder-layout",
        default="split",
        choices=("split", "two_bert", "shared_twice"),
        metavar="LAYOUT",
        help="for bert+vit: %(choices)s: one BERT cut in two, a copy for fusion, or the same "
        "layers again",
    )
    add(
        "--part",
        default="student",
        choices=("student", "prompter", "prompter_image", "prompter_obj"),
        metavar="PART",
        help="for promu: %(choices)s: the student, a stage-1 file as prompter, or a teacher inside "
        "the student",
    )
    add("--labels", metavar="FILE", help="for a fine-tuned relation model: its ours_rel2id.json")
    add("--image-size", type=int, metavar="PIXELS", help="resize the position table for this size")
    add("--seed", type=int, default=0, help="of what no source has (projections)")
    return parser


if __name__ == "__main__":
    main()
