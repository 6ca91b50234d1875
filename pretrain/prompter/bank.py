"""The prompter: a frozen dual encoder; pictures -> soft labels over prompts (PROMU §4.3).

It is an ordinary `FusionEncoder` without fusion layers, trained by the contrastive loss alone
(config `prompter`), and read in two ways: `label.py` stores its features of every picture and
object once; here its text tower encodes the prompts, once per run.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pretrain.prompter.clip import Encoder

ENTITY_TEMPLATES = {"1": "This is an image of {}.", "2": "An image of {} is shown here."}
RELATION_TEMPLATES = {
    "A": "This image shows the relation of {}.",
    "B": "The relation of {} is shown in this image.",
    "C": "The relation between the objects in the image is {}.",
}


@dataclass(frozen=True)
class PromptBank:
    """Encoded prompts of one vocabulary."""

    features: Tensor
    """(C, E) float32 unit vectors, row j = prompt of entry j."""
    temperature: float
    """The prompter's own learned temperature."""


@torch.no_grad()
def encode_prompts(
    encoder: Encoder,
    tokenizer: PreTrainedTokenizerBase,
    temperature: float,
    vocabulary: Sequence[str],
    templates: Sequence[str],
    *,
    chunk: int = 512,
    max_length: int = 32,
) -> PromptBank:
    """Fill every template with every entry and average the features over templates.

    A single template is the paper's setting (Table 3: entity 1, relation A); several are averaged
    and normalised again.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    total = torch.zeros(len(vocabulary), encoder.config.projection_size, device=device)
    for template in templates:
        prompts = [template.format(entry) for entry in vocabulary]
        for start in range(0, len(prompts), chunk):
            tokens = tokenizer(
                prompts[start : start + chunk],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            ).to(device)
            mask = tokens["attention_mask"]
            states = encoder.encode_text(tokens["input_ids"], mask)
            total[start : start + chunk] += encoder.text_feat(states, mask)
    return PromptBank(torch.nn.functional.normalize(total, dim=-1), temperature)
