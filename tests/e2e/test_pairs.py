"""Two processes started at once on one output: one writes it, the other writes the same, waits, or
is told in one line who writes; afterwards it is what one process alone leaves.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from faults import SHOWN, Server, differences, snapshot
from small_world import posts, pretrain, study, train

Words = Callable[[Path, Path], str]


@dataclass(frozen=True)
class Pair:
    """Two commands that write the same place."""

    first: Words
    """(world, root) -> its words."""
    second: Words | None = None
    """Another one; None: the same again."""
    prepare: Callable[[Path, Path], object] = lambda world, root: None
    """What lies below `root` before."""


def captions(world: Path, root: Path) -> str:
    return (
        f"shards build captions --images {world}/pictures --captions {world}/pictures/captions.csv "
        f"--out {root}/shards --shard-size 1 --jobs 1"
    )


def detect(world: Path, root: Path) -> str:
    return f"shards detect {root}/shards --detector file --boxes {world}/boxes.jsonl"


def with_shards(world: Path, root: Path) -> None:
    ignored = shutil.ignore_patterns("objects")
    shutil.copytree(world / "shards", root / "shards", ignore=ignored)


def with_run(world: Path, root: Path) -> None:
    shutil.copytree(world / "run", root / "run")


def evaluate(world: Path, root: Path) -> str:
    return f"evaluate {root}/run --data {world}/mnre --split test"


PAIRS = {
    "train": Pair(train),
    "train, two settings": Pair(train, lambda w, r: f"{train(w, r)} --optim.lr 1e-3"),
    "pretrain": Pair(pretrain),
    "study": Pair(study),
    "build": Pair(captions),
    "build, two settings": Pair(captions, lambda w, r: f"{captions(w, r)} --seed 3"),
    "detect": Pair(detect, None, with_shards),
    "nouns": Pair(
        lambda w, r: f"shards nouns {w}/shards --size 5 --tagger lexicon --out {r}/nouns.tsv"
    ),
    "convert": Pair(lambda w, r: f"pretrain convert {w}/model {r}/out"),
    "predict": Pair(posts),
    "evaluate": Pair(evaluate, None, with_run),
    "report": Pair(lambda w, r: f"report {w}/run --out {r}/report.md --summary {r}/s.json"),
    "figures": Pair(lambda w, r: f"figures relations {w}/run --out {r}/f.png"),
    "view": Pair(lambda w, r: f"view image-drop --data {w}/mnre --keep 0.5 --out {r}/view"),
    "regions": Pair(lambda w, r: f"regions recover --data {w}/crops --out {r}/r --split val"),
    "own data": Pair(lambda w, r: f"data convert {w}/own.csv --to relations --out {r}/train.jsonl"),
    "scores": Pair(
        lambda w, r: f"generate scores --data {r}/mnre --model {w}/clip --split val",
        None,
        lambda world, root: shutil.copytree(world / "mnre", root / "mnre"),
    ),
}


@pytest.fixture(scope="module")
def richer(world) -> Path:
    """What some of the commands read besides: a table of posts, a tiny CLIP."""
    rows = ["text,head,tail,relation", "Ann met Bob,Ann,Bob,met", "Cid saw Eve,Cid,Eve,saw"]
    (world / "own.csv").write_text("\n".join(rows))
    write_clip(world / "clip")
    return world


def write_clip(folder: Path) -> None:
    """Random weights, 50 pieces, two layers."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPConfig,
        CLIPImageProcessorPil,
        CLIPModel,
        CLIPProcessor,
        PreTrainedTokenizerFast,
    )

    words = [
        "<unk>",
        "<pad>",
        "<eos>",
        *["RT", "@x", ":", "Ann", "and", "Bob", "Cid", "Dora", "Eve", "Finn", "tonight"],
    ]
    bare = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, unk_token="<unk>", pad_token="<pad>", eos_token="<eos>"
    )
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 16}
    text = sizes | {"vocab_size": len(words), "eos_token_id": 2, "max_position_embeddings": 32}
    torch.manual_seed(0)
    vision = sizes | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    CLIPModel(config).save_pretrained(folder)
    size = {"shortest_edge": 16}
    crop = {"height": 16, "width": 16}
    CLIPProcessor(CLIPImageProcessorPil(size=size, crop_size=crop), tokenizer).save_pretrained(
        folder
    )


def left_alone(pair: Pair, words: Words, world: Path, root: Path, server: Server) -> dict:
    """What one command leaves that nobody disturbs."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    pair.prepare(world, root)
    status, output = server.run(words(world, root).split(), root)
    assert status == 0, output
    return snapshot(root)


def check(pair: Pair, world: Path, root: Path, server: Server) -> str:
    """Start both at once; how they ended."""
    both = (pair.first, pair.second or pair.first)
    expected = [left_alone(pair, words, world, root, server) for words in dict.fromkeys(both)]
    shutil.rmtree(root)
    root.mkdir()
    pair.prepare(world, root)
    results = server.together([words(world, root).split() for words in both], root)
    for status, output in results:
        assert "Traceback" not in output, output
        assert status == 0 or (status == 2 and len(SHOWN.findall(output)) == 1), output
    statuses = [status for status, _ in results]
    assert 0 in statuses, results
    problems = [differences(one, snapshot(root)) for one in expected]
    assert [] in problems, problems
    # Whoever was refused may try again: of the same settings it finds the work done.
    if pair.second is None:
        for words in both:
            status, output = server.run(words(world, root).split(), root)
            assert status == 0, output
        assert not differences(expected[0], snapshot(root))
    return "both wrote" if statuses == [0, 0] else "one was told"


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRS)
def test_pairs(name, richer, server, tmp_path):
    ends = [check(PAIRS[name], richer, tmp_path / "root", server) for _ in range(2)]
    print(f"{name}: {', '.join(ends)}")


@pytest.mark.parametrize("name", ["build", "detect", "predict", "evaluate"])
def test_some_pairs(name, richer, server, tmp_path):
    check(PAIRS[name], richer, tmp_path / "root", server)
