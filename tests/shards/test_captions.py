"""Generated captions: resumable, recorded; published ones imported."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from shards import captions
from shards.__main__ import main
from shards.captions import read_captions, write_captions
from shards.files import InputError


@pytest.fixture
def model(tiny_captioner):
    return tiny_captioner


@pytest.fixture
def images(tmp_path, picture):
    for number in range(6):
        picture(tmp_path / "images" / "sub" / f"{number}.jpg", seed=number)
    (tmp_path / "images" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "images" / "note.txt").write_text("no picture either")
    return tmp_path / "images"


@pytest.fixture
def decoder(tmp_path):
    """A Qwen2-VL of random weights: it goes on from a text of as many tokens as a picture needs."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    special = ["<pad>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    words = {word: n for n, word in enumerate([*special, "<eos>", *(f"w{n}" for n in range(90))])}
    words = {**words, "a": 96, "photo": 97, "of": 98, "<unk>": 99}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([*special, "<eos>"])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", padding_side="right"
    )
    text = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100}
    text |= {"num_key_value_heads": 2, "intermediate_size": 16, "pad_token_id": 0}
    text |= {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2],
                                 "rope_theta": 1e4}}  # fmt: skip
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "mlp_ratio": 2}
    config = transformers.Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=1, video_token_id=2,
        vision_start_token_id=3, vision_end_token_id=4, bos_token_id=5, eos_token_id=5,
    )  # fmt: skip
    transformers.set_seed(0)
    model = transformers.Qwen2VLForConditionalGeneration(config)
    with torch.no_grad():
        for weights in model.parameters():
            weights.mul_(8)  # else every answer is the same word
    model.save_pretrained(tmp_path / "model")
    picture = transformers.Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=28 * 28 * 64)
    template = "<|vision_start|> <|image_pad|> <|vision_end|> a photo of"
    transformers.Qwen2VLProcessor(
        picture, tokenizer, transformers.Qwen2VLVideoProcessor(), chat_template=template
    ).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_caption_does_not_depend_on_the_batch(decoder):
    captioner = captions.Captioner(str(decoder), "a photo of", 8, "cpu")
    random = np.random.default_rng(0)
    pictures = [
        Image.fromarray(random.integers(0, 255, (*size, 3), dtype=np.uint8))
        for size in ((28, 28), (112, 56), (168, 168), (56, 224))
    ]
    alone = [captioner.describe([picture])[0] for picture in pictures]
    assert captioner.describe(pictures) == alone and len(set(alone)) > 1


def generate(images, model, out, *options):
    main(["captions", "generate", str(images), "--model", str(model), "--out", str(out), *options])


def test_every_picture_gets_a_caption(images, model, tmp_path, capsys):
    out = tmp_path / "captions.csv"
    generate(images, model, out, "--batch", "4", "--max-new-tokens", "5")
    assert "7 pictures = 6 captions + 1 rejects" in capsys.readouterr().out
    rows = list(csv.reader(out.open()))
    assert rows[0] == ["image", "caption"]
    assert [row[0] for row in rows[1:]] == [f"sub/{n}.jpg" for n in range(6)]
    assert all(caption and "photo" not in caption[:8] for _, caption in rows[1:])
    about = json.loads((tmp_path / "captions.csv.json").read_text())
    assert (about["model"], about["prompt"]) == (str(model), "a photo of")
    assert "not a JPEG" in about["rejects"]["broken.png"]
    # The result is a corpus for `build captions`.
    options = ["--captions", str(out), "--out", str(tmp_path / "shards"), "--mismatch", "0"]
    main(["build", "captions", "--images", str(images), *options, "--jobs", "1"])
    assert "6 rows = 6 samples" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(images, model, tmp_path, monkeypatch, capsys):
    plain, cut = tmp_path / "plain.txt", tmp_path / "cut.txt"
    options = ["--batch", "1", "--max-new-tokens", "5"]
    generate(images, model, plain, *options)
    described, real = [], captions.Captioner.describe

    def describe(self, batch):
        if len(described) == 3:
            raise KeyboardInterrupt
        described.append(batch)
        return real(self, batch)

    monkeypatch.setattr(captions.Captioner, "describe", describe)
    with pytest.raises(SystemExit):
        generate(images, model, cut, *options)
    with open(tmp_path / "cut.txt.part", "a") as file:
        file.write('{"image": "sub/5.j')  # as kill -9 may leave it
    assert not cut.exists()
    monkeypatch.setattr(
        captions.Captioner, "describe", lambda s, b: described.append(b) or real(s, b)
    )
    generate(images, model, cut, *options)
    assert len(described) == 6
    assert cut.read_bytes() == plain.read_bytes()
    assert not (tmp_path / "cut.txt.part").exists()
    (tmp_path / "cut.txt.part").write_text('{"model": "another"}\n')
    generate(images, model, cut, *options)
    assert len(described) == 12 and "another model" in capsys.readouterr().out


def test_a_model_that_is_none(images, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        generate(images, tmp_path / "nothing", tmp_path / "c.csv")
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "nothing" in error and len(error.splitlines()) == 1


def test_published_captions(shared_data, tmp_path):
    file = shared_data / "mnre" / "caption" / "llavanext_val.txt"
    main(["captions", "convert", str(file), "--out", str(tmp_path / "c.csv")])
    found = read_captions(tmp_path / "c.csv")
    assert len(found) == 932  # 931 pictures and `inf.png`, as specs/camim.md counts
    assert found == read_captions(file)
    main(["captions", "convert", str(tmp_path / "c.csv"), "--out", str(tmp_path / "c.txt")])
    assert read_captions(tmp_path / "c.txt") == found


def test_texts_survive_both_formats(tmp_path):
    texts = {
        "a.jpg": 'he said "it\'s", ok',
        "b/ü.jpg": "line\none 漢字",
        "c.jpg": "",
        "d,e.jpg": "x",
    }
    for name in ("c.txt", "c.csv"):
        write_captions(tmp_path / name, texts)
        assert read_captions(tmp_path / name) == texts


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("c.txt", "", "no caption"),
        ("c.txt", "{'img_id': 'a', 'text': 'b'}\n{'img_id': 'a', 'text': 'c'}", "second caption"),
        ("c.txt", "{'img_id': 'a', 'text': 'b'}\n{'img_id': 'a'", "line 2"),
        ("c.txt", "__import__('os').system('true')", "line 1"),
        ("c.txt", "{'img_id': 1, 'text': 'b'}", "must be texts"),
        ("c.txt", "[" * 5000, "line 1"),
        ("c.txt", "\xff", "line 1: byte 0xff at position 0 is no UTF-8"),
        ("c.csv", "a,b\n1,2\n", "`image` and `caption`"),
        ("c.csv", "image,caption\n", "no caption"),
    ],
)
def test_damaged_caption_files(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=problem):
        read_captions(tmp_path / name)
