"""`python -m pretrain convert`: any known checkpoint -> model directory, and back out."""

from collections.abc import Sequence
from contextlib import nullcontext

from pretrain.checkpoint.convert_config import ConvertConfig
from shards.command import exit_on_input_error, without_local_rank
from shards.locks import lock_file
from shards.options import parse_config

EXAMPLES = """
  newest checkpoint of a run, or a certain one
    python -m pretrain convert runs/base out/model
    python -m pretrain convert runs/base/checkpoints/step-500 out
  the authors' PROMU, and the prompter of their stage 1
    python -m pretrain convert model_step_85000.pt out
    python -m pretrain convert restore.pt teacher --part prompter_image
  first weights: BERT and a ViT, or a CLIP or SigLIP with its projections; CLIP as a teacher
    python -m pretrain convert bert-base-uncased out \\
        --vision vit_base_patch16_224.orig_in21k
    python -m pretrain convert google/siglip2-base-patch16-224 out --from two-tower
    python -m pretrain convert openai/clip-vit-base-patch32 teacher
  back out, and a fine-tuned one of a paper
    python -m pretrain convert out/model promu.pt --to promu
    python -m pretrain convert best.pth runs/h/model \\
        --from hvpnet --labels ours_rel2id.json
"""


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Convert and report."""
    config = parse_config(
        ConvertConfig, without_local_rank(argv), prog="python -m pretrain convert", example=EXAMPLES
    )
    from pretrain.checkpoint.conversion import convert
    from pretrain.checkpoint.remote import is_remote

    with nullcontext() if is_remote(config.out) else lock_file(config.out):
        convert(config)


if __name__ == "__main__":
    main()
