"""`python -m finetune generate`: pictures that go on where they stopped, scores against a loop."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import SafetensorError

from finetune.data import generate
from finetune.data.generate import matching_share, paint_all, posts_of, stable_diffusion
from finetune.tasks.mnre import Mnre
from finetune.tasks.relations import OwnRelations
from finetune.tasks.side_files import read_scores
from shards.command import exit_on_input_error
from shards.files import InputError

main = exit_on_input_error(generate.main)

SETTINGS = {"model": "m", "steps": 5, "seed": 0}


def painter(seen, fail_after=None):
    """A grey square whose shade is the seed's."""

    def paint(prompts, seeds):
        if fail_after is not None and len(seen) >= fail_after:
            raise KeyboardInterrupt
        seen.extend(prompts)
        return [Image.new("RGB", (8, 8), (seed % 256,) * 3) for seed in seeds]

    return paint


def test_painting_goes_on(tmp_path):
    """Interrupted and resumed gives the pictures of one pass, in whatever batches."""
    posts = {f"{i}.jpg": f"post {i}" for i in range(7)}
    seen = []
    with pytest.raises(KeyboardInterrupt):
        paint_all(posts, tmp_path / "a", painter(seen, fail_after=3), SETTINGS, 3)
    assert paint_all(posts, tmp_path / "a", painter(seen), SETTINGS, 2) == 4
    assert seen == list(posts.values())
    assert paint_all(posts, tmp_path / "b", painter([]), SETTINGS, 7) == 7
    for name in posts:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert paint_all(posts, tmp_path / "a", painter(seen), SETTINGS, 2) == 0
    with pytest.raises(InputError, match="made with another steps"):
        paint_all(posts, tmp_path / "a", painter([]), SETTINGS | {"steps": 6}, 2)
    (tmp_path / "a/generated.json").write_text("{")
    with pytest.raises(InputError, match=r"generated\.json: damaged"):
        paint_all(posts, tmp_path / "a", painter([]), SETTINGS, 2)


def test_first_post_of_a_picture(mnre_folder):
    path = mnre_folder / "txt/ours_val.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[0].replace("'RT'", "'MT'")]))
    posts = posts_of(Mnre(mnre_folder), "val")
    assert len(posts) == 30 and posts["val0.jpg"].startswith("RT @x : ")


def test_posts_without_a_picture(tmp_path):
    """A user's own rows may have none: nothing is painted for them."""
    row = {"tokens": ["Ann", "met", "Bob"], "head": [0, 1], "tail": [2, 3], "relation": "met"}
    for split in ("train", "val"):
        lines = [json.dumps(row), json.dumps(row | {"image": "1.jpg"})]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(lines))
    assert posts_of(OwnRelations(tmp_path), "train") == {"1.jpg": "Ann met Bob"}


def test_without_the_extra():
    if generate.__dict__.get("diffusers") or __import__("importlib").util.find_spec("diffusers"):
        pytest.skip("diffusers is installed")
    with pytest.raises(InputError, match=r"pip install 'fusion-mre\[generate\]'"):
        stable_diffusion("x", 1, "cpu")


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("nothing/here is no local folder\nand more lines"), "no local folder"),
        (KeyError(), "KeyError"),
        (SafetensorError("header too large"), "header too large"),
    ],
    ids=["missing", "incomplete", "damaged"],
)
def test_no_stable_diffusion(mnre_folder, monkeypatch, capsys, error, said):
    """What diffusers raises ends in one line that says what to give."""

    class Fails:
        @classmethod
        def from_pretrained(cls, *args, **options):
            raise error

    fake = types.ModuleType("diffusers")
    fake.EulerDiscreteScheduler = fake.StableDiffusionPipeline = Fails
    monkeypatch.setitem(sys.modules, "diffusers", fake)
    with pytest.raises(SystemExit) as stopped:
        main(["pictures", "--data", str(mnre_folder), "--model", "nothing/here"])
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2
    assert line.startswith("error: --model nothing/here: no Stable Diffusion") and said in line
    assert "model_index.json" in line and "more lines" not in line
    assert not (mnre_folder / "diffusion_pic").exists()


def test_share_of_posts_that_match_less():
    """Against a loop, over several chunks; ties count half; nothing to compare with: a half."""
    generator = np.random.default_rng(0)
    pictures, posts = generator.standard_normal((2, 9, 4)).astype(np.float32)
    posts[3] = posts[5]
    found = matching_share(pictures, posts, chunk=4)
    for i in range(9):
        own = pictures[i] @ posts[i]
        wins = [
            1.0 if pictures[i] @ posts[j] < own else 0.5 * np.array_equal(posts[i], posts[j])
            for j in range(9)
            if j != i
        ]
        assert found[i] == pytest.approx(np.mean(wins), abs=1e-6)
    assert matching_share(pictures[:1], posts[:1]).tolist() == [0.5]
    assert matching_share(np.eye(3), np.eye(3)).tolist() == [1, 1, 1]


@pytest.mark.parametrize("kind", ["pictures", "scores"])
def test_an_unknown_split(mnre_folder, capsys, kind):
    with pytest.raises(SystemExit) as stopped:
        main([kind, "--task", "twitter2015", "--data", str(mnre_folder), "--split", "x"])
    assert stopped.value.code == 2
    assert "split" in capsys.readouterr().err


def test_no_post_with_a_picture(tmp_path):
    with pytest.raises(InputError, match="no post of val has a picture"):
        generate.write_scores({}, tmp_path, None, tmp_path, "val", "")


def test_scores_of_a_clip(mnre_folder, tmp_path, capsys):
    """The command with a tiny CLIP; its files are read back as TMR's, strong + weak = 1."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    characters = [chr(c) for c in range(33, 127)]
    words = [*characters, *(c + "</w>" for c in characters), "<|startoftext|>", "<|endoftext|>"]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=32
    )
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=sizes | {"vocab_size": len(words), "max_position_embeddings": 32,
                                 "eos_token_id": len(words) - 1},
            vision_config=sizes | {"image_size": 16, "patch_size": 8},
            projection_dim=8,
        )
    )  # fmt: skip
    model.save_pretrained(tmp_path / "clip")
    pictures = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    CLIPProcessor(pictures, tokenizer).save_pretrained(tmp_path / "clip")
    main(["scores", "--data", str(mnre_folder), "--split", "val", "--device", "cpu",
                   "--model", str(tmp_path / "clip")])  # fmt: skip
    assert "scores of 30 pictures of val" in capsys.readouterr().out
    strong, weak = (
        read_scores(mnre_folder / f"scores/val_weight_{name}.txt").values
        for name in ("strong", "weak")
    )
    assert len(strong) == 30 and 0 <= min(strong.values()) < max(strong.values()) <= 1
    assert all(abs(strong[name] + weak[name] - 1) < 1e-5 for name in strong)
