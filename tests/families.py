"""Tiny random text encoders and picture backbones, one of each family, as their publishers write
them: model directories of `transformers` and of timm's `local-dir:` layout."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch

WORDS = [
    "a",
    "the",
    "man",
    "woman",
    "dog",
    "crown",
    "on",
    "in",
    "near",
    "beach",
    "red",
    "blue",
    "Anna",
    "Bob",
    "Oslo",
    "Paris",
    "lives",
    "plays",
    "with",
    "two",
    "of",
    "and",
    "17",
    ",",
    ".",
    "'",
    "don't",
    "café",
]
CAPTIONS = [
    " ".join(WORDS[(step * number + step) % len(WORDS)] for step in (1, 3, 7)) + "."
    for number in range(200)
]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48,
}  # fmt: skip
TEXTS: dict[str, tuple[str, dict]] = {
    "bert": ("wordpiece", {}),
    "roberta": ("bytes", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    "xlm-roberta": ("unigram", {"type_vocab_size": 1}),
    "electra": ("wordpiece", {"embedding_size": 16}),
    "deberta-v2": ("unigram", {
        "relative_attention": True, "position_buckets": 8, "norm_rel_ebd": "layer_norm",
        "share_att_key": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False,
        "type_vocab_size": 0,
    }),
    "modernbert": ("bytes", {"global_attn_every_n_layers": 2, "local_attention": 8}),
    "mpnet": ("wordpiece", {}),
    "distilbert": ("wordpiece", {}),
    "clip_text_model": ("bytes", {}),
    "siglip_text_model": ("unigram", {}),
}  # fmt: skip
"""`model_type` -> kind of tokenizer, settings beside SIZES."""
VISIONS: dict[str, tuple[str, dict]] = {
    "plain": ("vit_tiny_patch16_224", {"patch_size": 8}),
    "layerscale": ("vit_small_patch14_dinov2", {"patch_size": 8}),
    "registers": ("vit_small_patch14_reg4_dinov2", {"patch_size": 8}),
    "rotary": ("eva02_tiny_patch14_224", {"patch_size": 8}),
    "dinov3": ("vit_small_patch16_dinov3", {"patch_size": 8}),
    "map": ("vit_base_patch16_siglip_224", {"patch_size": 8}),
    "pre-norm": ("vit_base_patch32_clip_224", {"patch_size": 8}),
    "resnet": ("resnet10t", {"channels": [8, 8, 16, 32], "stem_width": 8}),
    "convnext": ("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 32]}),
    "efficientnet": ("tinynet_e", {}),
}
"""Name of a kind -> architecture of timm, its arguments."""
_VIT = {"img_size": 32, "embed_dim": 32, "depth": 2, "num_heads": 2}


def write_text(family: str, folder: Path) -> Path:
    """Model and tokenizer of one family; `folder` is returned."""
    from transformers import AutoConfig

    from pretrain.model.library import model_class

    kind, settings = TEXTS[family]
    tokenizer = TOKENIZERS[kind]()
    names = ("pad", "bos", "eos", "cls", "sep")
    special = {f"{n}_token_id": getattr(tokenizer, f"{n}_token_id") for n in names}
    positions = 42 if tokenizer.pad_token_id == 1 and "roberta" in family else 40
    sizes = {"vocab_size": len(tokenizer), "max_position_embeddings": positions, **SIZES}
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **sizes, **settings, **special)
    model_class(config)(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_vision(kind: str, folder: Path) -> Path:
    """A backbone in timm's layout; `folder` is returned."""
    from safetensors.torch import save_file
    from timm.models import create_model

    architecture, arguments = VISIONS[kind]
    if "patch_size" in arguments:
        arguments = arguments | _VIT
    torch.manual_seed(0)
    net = create_model(architecture, num_classes=0, **arguments)
    folder.mkdir()
    size = arguments.get("img_size", 64)
    preset = {"input_size": [3, size, size], "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25],
              "num_classes": 0}  # fmt: skip
    content = {"architecture": architecture, "num_classes": 0, "model_args": arguments}
    (folder / "config.json").write_text(json.dumps(content | {"pretrained_cfg": preset}))
    save_file(net.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def wordpiece():
    """BERT's."""
    from pretrain.data.tokenizer import learn_tokenizer

    return learn_tokenizer(CAPTIONS, 120)


def byte_level():
    """RoBERTa's: bytes, blanks belong to the word behind them, <pad> is number 1."""
    from tokenizers import ByteLevelBPETokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast

    learned = ByteLevelBPETokenizer(add_prefix_space=True)
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learned.train_from_iterator(CAPTIONS, 320, special_tokens=special, show_progress=False)
    learned._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, **_named())


def unigram():
    """XLM-R's: pieces of SentencePiece, blanks as ▁."""
    from tokenizers import SentencePieceUnigramTokenizer
    from tokenizers.processors import RobertaProcessing
    from transformers import PreTrainedTokenizerFast

    learned = SentencePieceUnigramTokenizer()
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    learned.train_from_iterator(
        CAPTIONS, 100, special_tokens=special, unk_token="<unk>", show_progress=False
    )
    learned._tokenizer.post_processor = RobertaProcessing(("</s>", 2), ("<s>", 0))
    return PreTrainedTokenizerFast(tokenizer_object=learned._tokenizer, **_named())


TOKENIZERS = {"wordpiece": wordpiece, "bytes": byte_level, "unigram": unigram}


def _named() -> dict[str, str]:
    names = {"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>",
             "bos": "<s>", "eos": "</s>"}  # fmt: skip
    return {f"{name}_token": piece for name, piece in names.items()}


def diagonal() -> Iterable[tuple[str, str]]:
    """Each family and each kind once."""
    return zip(TEXTS, VISIONS, strict=True)
