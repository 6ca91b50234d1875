"""What the encoder is shown: pixels, normalised once; prompts, one a word, in order."""

import torch
from torch.nn.functional import normalize

from pretrain.data.tokenizer import learn_tokenizer
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.prompter.bank import encode_prompts

CONFIG = FusionEncoderConfig(
    vocab_size=60, hidden_size=16, num_attention_heads=2, intermediate_size=24, text_layers=1,
    fusion_layers=0, max_position_embeddings=16, image_size=32, patch_size=8,
    vision_hidden_size=16, vision_layers=1, vision_heads=2, projection_size=8,
)  # fmt: skip
WORDS = ["ring", "gold crown", "tree", "ball", "map", "team shirt", "flag"]


def test_pixels_are_normalised_once():
    """127 and 128 stand on both sides of zero, and the tower is given just that."""
    encoder = FusionEncoder(CONFIG)
    seen = []
    encoder.vision.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for value in (127, 128, 0, 255):
        encoder.encode_image(torch.full((1, 3, 32, 32), value, dtype=torch.uint8))
    middle = 1 / 255
    for pixels, expected in zip(seen, (-middle, middle, -1, 1), strict=True):
        torch.testing.assert_close(pixels, torch.full_like(pixels, expected))


def test_entry_j_of_the_bank_is_the_prompt_of_word_j():
    """Also in a second chunk, of any number of words, and as the mean over several templates."""
    tokenizer = learn_tokenizer([f"this is a {word}" for word in WORDS] * 3, 60)
    torch.manual_seed(0)
    encoder = FusionEncoder(CONFIG).eval()
    templates = ["a {} .", "this is {}"]

    def by_hand(prompt: str) -> torch.Tensor:
        tokens = tokenizer(prompt, return_tensors="pt")
        with torch.no_grad():
            return encoder.text_feat(
                encoder.encode_text(tokens["input_ids"], tokens["attention_mask"])
            )[0]

    bank = encode_prompts(encoder, tokenizer, 0.1, WORDS, templates[:1], chunk=3)
    assert bank.features.shape == (7, 8) and bank.temperature == 0.1
    for feature, word in zip(bank.features, WORDS, strict=True):
        torch.testing.assert_close(feature, by_hand(f"a {word} ."), rtol=0, atol=1e-5)
    several = encode_prompts(encoder, tokenizer, 0.1, WORDS[:2], templates)
    for feature, word in zip(several.features, WORDS, strict=False):
        mean = by_hand(f"a {word} .") + by_hand(f"this is {word}")
        torch.testing.assert_close(feature, normalize(mean, dim=0), rtol=0, atol=1e-5)
