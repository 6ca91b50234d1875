"""Weights and corpora as their publishers hold them, with random values or drawn pictures.

Names, sizes and layouts are the publishers'; `tiny` keeps names and layouts and shrinks sizes.
"""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np

SUBSETS = (
    "semantics_clip_text_image",
    "semantics_clip_text_text",
    "person_sbert_text_text",
    "scene_resnet_place",
)
REVISION = "0" * 40
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"


def hub_folder(home: Path, name: str) -> Path:
    """Where `HF_HOME` keeps the newest revision of a repository of the hub."""
    root = home / "hub" / f"models--{name.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs/main").write_text(REVISION)
    folder = root / "snapshots" / REVISION
    folder.mkdir(parents=True)
    return folder


def write_bert(folder: Path, words: list[str], *, tiny: bool) -> None:
    """What google-bert/bert-base-uncased holds: all heads, LayerNorms' old names, a vocabulary in
    which [UNK] is number 100."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import BertConfig, BertForPreTraining, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 64, "vocab_size": 1000}
    pieces = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*"!#$&'()*,-./:;?@_|", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    pieces += [word for word in dict.fromkeys(words) if word not in pieces]
    size = sizes["vocab_size"] if tiny else 30522
    pieces = [*pieces[:size], *(f"[unused{n}]" for n in range(99, 99 + size - len(pieces)))]
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    BertTokenizer(str(folder / "vocab.txt"), model_max_length=512).save_pretrained(folder)
    torch.manual_seed(0)
    BertForPreTraining(BertConfig(**sizes if tiny else {})).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    old_names = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in tensors.items()
    }
    save_file(old_names, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings |= {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False}
    settings |= {"position_embedding_type": "absolute", "transformers_version": "4.6.0.dev0"}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))


def write_vit(folder: Path, *, tiny: bool) -> None:
    """What timm/vit_base_patch16_224.orig_in21k holds."""
    import timm
    import torch

    sizes = {"img_size": 32, "patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2}
    torch.manual_seed(0)
    vit = timm.create_model("vit_base_patch16_224.orig_in21k", **sizes if tiny else {})
    timm.models.save_for_hf(vit, folder, model_args=sizes if tiny else None)


def write_detector(path: Path, lent: Path | None, python: Path) -> None:
    """Weights of ultralytics': real ones where they are lent, else random.

    Args:
        python: runs it: ultralytics changes how its process opens pictures.
    """
    if lent and lent.is_file():
        shutil.copyfile(lent, path)
    else:
        code = f"from ultralytics import YOLO; YOLO('yolo11n.yaml').save({str(path)!r})"
        subprocess.run([python, "-c", code], check=True)


def write_corpora(work: Path, *, rows: tuple[int, int, int]) -> list[str]:
    """`SAMPLE/` as `shards sample` draws it; `NC/` with the four sub-splits; `VN`, `MNRE` with the
    community's crop lists and TMR's phrases, `TWITTER`. Returns the words of all captions."""
    from shards.sample.write import SampleConfig, write_sample

    write_sample(SampleConfig(out=work / "SAMPLE", pairs=80, rows=rows, size=64))
    for split in ("train", "val", "test"):
        name = f"data/merged_balanced/{split}.json"
        content = json.loads((work / "SAMPLE/news_clippings" / name).read_text())
        for number, subset in enumerate(SUBSETS):  # a picture's two rows stay together
            annotations = [
                row for i, row in enumerate(content["annotations"]) if i // 2 % 4 == number
            ]
            path = work / f"NC/data/{subset}/{split}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content | {"annotations": annotations}))
    for name, folder in {"VN": "visual_news", "MNRE": "mnre", "TWITTER": "twitter2017"}.items():
        shutil.copytree(work / "SAMPLE" / folder, work / name)
    for path in (work / "TWITTER").glob("*.txt"):
        sentences = path.read_text().split("\n\n")[: rows[0] if path.stem == "train" else rows[1]]
        path.write_text("\n\n".join(sentences) + "\n\n")
    _write_community_files(work / "MNRE")
    articles = json.loads((work / "VN/origin/data.json").read_text())
    return " ".join(article["caption"].lower() for article in articles).split()


def _write_community_files(mnre: Path) -> None:
    """`txt/mre_{split}_dict.pth`: row -> names of crops; `txt/phrase_text_{split}.json`."""
    import torch

    rng = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        number = len((mnre / f"txt/ours_{split}.txt").read_text().splitlines())
        counts = rng.integers(1, 5, number).tolist()
        crops = {row: [f"crop_{k}.jpg" for k in range(n)] for row, n in enumerate(counts)}
        torch.save(crops, mnre / f"txt/mre_{split}_dict.pth")
        phrases = {str(row): f"Bob Oslo person {split}" for row in range(number)}
        (mnre / f"txt/phrase_text_{split}.json").write_text(json.dumps(phrases))


def write_own_data(work: Path) -> None:
    """`{train,val,test}.csv` with pictures, `posts.jsonl` and `17.jpg`: what a user brings."""
    pictures = sorted((work / "MNRE/img_org/train").iterdir())[:4]
    (work / "mine/images").mkdir(parents=True)
    for picture in pictures:
        shutil.copy(picture, work / "mine/images")
    shutil.copyfile(pictures[0], work / "17.jpg")
    lines = ["text,head,tail,relation,image"]
    for number in range(12):
        relation = ("lives_in", "None")[number % 2]
        picture = pictures[number % 4].name
        lines.append(f'"Bob{number} , in Oslo",Bob{number},Oslo,{relation},{picture}')
    for split in ("train", "val"):
        (work / f"{split}.csv").write_text("\n".join(lines) + "\n")
    post = {"text": "Bob in Oslo tonight", "image": "17.jpg"}
    (work / "posts.jsonl").write_text(json.dumps(post) + "\n")
