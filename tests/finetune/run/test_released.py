"""Checkpoints in the authors' layouts -> runs that load, with the very weights; base size."""

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, BertTokenizerFast

from finetune.__main__ import main
from finetune.methods.base import Source
from finetune.registry import load
from finetune.run import released
from finetune.run.checkpoint import load_method
from finetune.run.open_run import seed_directories
from finetune.tasks.mnre import Mnre
from pretrain import convert
from pretrain.checkpoint.convert_config import ConvertConfig

GOLDEN = Path(__file__).parents[3].parent / "shared/golden"


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A BERT-base directory: sizes and tokenizer are read of it, no weight."""
    folder = tmp_path_factory.mktemp("bert")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{i}" for i in range(30517))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    BertConfig().save_pretrained(folder)
    return folder


def write_checkpoint(kind: str, path: Path) -> dict[str, torch.Tensor]:
    """Their names and shapes, as the golden files list them, random numbers."""
    file = GOLDEN / {"hvpnet": "hvpnet_re.json", "hvpnet_ner": "hvpnet_ner.json",
                     "tmr": "tmr_re.json", "camim": "camim.json",
                     "mkgformer": "mkgformer.json"}[kind]  # fmt: skip
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    random = torch.Generator().manual_seed(0)
    weights = json.loads(file.read_text())["weights"]
    state = {
        name: torch.zeros(shape, dtype=torch.long)
        if weight_kind == "keep"
        else torch.randn(shape, generator=random)
        for name, shape, weight_kind, _ in weights
    }
    torch.save({"state_dict": state} if kind in ("tmr", "camim") else state, path)
    return state


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hvpnet", "hvpnet_ner", "tmr", "camim", "mkgformer"])
def test_their_checkpoint_becomes_a_run(kind, bert, tmp_path, capsys):
    state = write_checkpoint(kind, tmp_path / "best.pth")
    (tmp_path / "rel2id.json").write_text(json.dumps({f"r{i}": i for i in range(23)}))
    out = tmp_path / "run" / "model"
    labels = [] if kind == "hvpnet_ner" else ["--labels", str(tmp_path / "rel2id.json")]
    name = kind.removesuffix("_ner")
    convert.main(
        [str(tmp_path / "best.pth"), str(out), "--from", name, "--tokenizer", str(bert), *labels]
    )
    assert "sha256" in capsys.readouterr().out
    method, tokenizer, description = load_method(seed_directories(tmp_path / "run")[0] / "model")
    assert description.inputs["regions"] == "community"
    task_kind = description.task.kind
    assert task_kind == ("entities" if kind == "hvpnet_ner" else "relation")
    rename = {"hvpnet": released.hvpnet, "tmr": released.tmr, "camim": released.camim,
              "mkgformer": released.mkgformer}[name].args[1]  # fmt: skip
    ours = method.state_dict()
    for key, tensor in rename(state).items():
        assert torch.equal(ours[key], tensor), key
    if task_kind == "relation":  # their four markers are ours
        assert method.encoder.get_input_embeddings().num_embeddings == len(tokenizer)


def test_another_file_is_refused_by_name(bert, tmp_path, capsys):
    model = BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1),
        add_pooling_layer=False,
    )
    torch.save(model.state_dict(), tmp_path / "best.pth")
    for kind in ("hvpnet", "tmr", "camim", "mkgformer"):
        with pytest.raises(SystemExit) as stopped:
            convert.main(
                [str(tmp_path / "best.pth"), str(tmp_path / "out"), "--from", kind,
                 "--tokenizer", str(bert)]
            )  # fmt: skip
        assert stopped.value.code == 2
        assert re.search(r"error: .*best.pth: .*(names|tensors)", capsys.readouterr().err)


# --- evaluated as released ------------------------------------------------------------------------

TINY = {"vision": "resnet10t", "vision_random": True, "vision_width": 4, "image_size": 32}
THEIRS = (
    (r"head\.(fine|coarse)\.(q|k|v)(?:uery|ey|alue)\.", r"sentence_encoder.linear_\2_\1."),
    (r"head\.extend\.", "sentence_encoder.linear_extend_pic."),
    (r"head\.phrase\.", "sentence_encoder.linear_phrases."),
    (r"head\.final\.", "sentence_encoder.linear_final."),
    (r"head\.classifier\.", "fc."),
    (r"encoder\.", "sentence_encoder.bert."),
    (r"vision\.net\.", "sentence_encoder.model_resnet50."),
    (r"reduce\.", "sentence_encoder.linear_pic."),
    (r"caption_encoder\.", "sentence_encoder.bert2."),
    (r"aware\.attention\.(q|k|v)(?:uery|ey|alue)\.", r"sentence_encoder.attention.linear_\1."),
    (r"aware\.attention\.word_(q|k|v)(?:uery|ey|alue)\.",
     r"sentence_encoder.attention.linear_\g<1>2."),
    (r"aware\.attention\.merge\.", "sentence_encoder.attention.merge_fr.0."),
    (r"aware\.sentence\.", "sentence_encoder.encoder_conv_sentence.0."),
    (r"aware\.(back|word)\.", r"sentence_encoder.encoder_conv_\1."),
)  # fmt: skip


@pytest.fixture(scope="module")
def small_bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    words = ["[PAD]", *(f"[unused{i}]" for i in range(4)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*"abcdefghijklmnopqrstuvwxyz@:", *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz")]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    BertTokenizerFast.from_pretrained(folder).save_pretrained(folder)
    BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, max_position_embeddings=128,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def write_side_inputs(folder: Path) -> None:
    """What TMR and CAMIM read of the test rows."""
    rows = Mnre(folder).read("test")
    shade = Image.new("RGB", (12, 12), (9, 99, 9))
    for place in ("img_vg/test/crops", "diffusion_pic/test", "caption"):
        (folder / place).mkdir(parents=True)
    shade.save(folder / "img_vg/test/crops/c.jpg")
    for row in rows:
        shade.save(folder / "diffusion_pic/test" / row.image_id)
    torch.save({row.row: ["c.jpg"] for row in rows}, folder / "txt/mre_test_dict.pth")
    boxes = {row.row: [torch.tensor([0.0, 0, 6, 6])] for row in rows}
    torch.save(boxes, folder / "txt/mre_dif_test_dict.pth")
    phrases = {str(row.row): "Ann Bob person" for row in rows}
    (folder / "txt/phrase_text_test.json").write_text(json.dumps(phrases))
    for name in ("test", "dif_test"):
        for strength, value in (("weak", 0.9), ("strong", 0.1)):
            scores = "".join(f"{row.image_id}\t{value}\n" for row in rows)
            (folder / f"txt/{name}_weight_{strength}.txt").write_text(scores)
    for name, text in (("minicpm", "a man"), ("caption", "two women on a road")):
        captions = [repr({"img_id": row.image_id, "text": text}) for row in rows]
        (folder / f"caption/{name}_test.txt").write_text("\n".join(captions))


@pytest.mark.parametrize("kind", ["tmr", "camim"])
def test_converted_run_is_evaluated_as_released(kind, small_bert, mnre_folder, tmp_path, capsys):
    """Phrases, boxes, scores and captions as the released code read them: stamped leaky. What is
    missing is said in one line; captions can be another captioner's."""
    of_method = getattr(released, kind)
    name, rename, settings = of_method.args
    method_class, task = load("methods", name), Mnre(mnre_folder).info
    torch.manual_seed(0)
    config = method_class.Config(**settings, **released.tmr_names.RELATION_SETTINGS, **TINY)
    method, _ = method_class.build(config, task, Source(str(small_bert), random_weights=True))
    theirs = {}
    for ours, tensor in method.state_dict().items():
        pattern, name_of = next(rule for rule in THEIRS if re.match(rule[0], ours))
        key = re.sub("^" + pattern, name_of, ours)
        theirs[key] = tensor[:-4] if "word_embeddings" in key else tensor
    torch.save({"state_dict": theirs}, tmp_path / "best.pth")
    args = ConvertConfig(
        source="best.pth", out=str(tmp_path / "run/model"), tokenizer=str(small_bert),
        labels=str(mnre_folder / "ours_rel2id.json"),
    )  # fmt: skip
    of_method.func(name, rename, settings | TINY, tmp_path / "best.pth", args, **of_method.keywords)
    _, _, description = load_method(tmp_path / "run/model")
    assert description.inputs["max_length"] == 128
    asked = ("phrases", "generated_boxes", "scores")
    assert [getattr(description.config, a) for a in asked] == ["community", "community", "txt"]

    def evaluate(*options):
        main(["evaluate", str(tmp_path / "run"), "--data", str(mnre_folder), *options])

    def refused(*options):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            evaluate(*options)
        assert stopped.value.code == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert refused().startswith("error: ")  # no side input is there
    write_side_inputs(mnre_folder)
    evaluate()
    found = json.loads((tmp_path / "run/evaluate_test.json").read_text())
    assert found["leaky"] and len(found["per_seed"]) == 1
    first = (tmp_path / "run/pred_test.jsonl").read_bytes()
    assert len(first.splitlines()) == 30
    if kind == "tmr":
        assert found["captions"] is None
        assert "was trained without captions" in refused("--captions", "caption")
    else:
        assert found["captions"] == "minicpm"
        (mnre_folder / "caption/minicpm_test.txt").unlink()
        assert "none of caption/minicpm_test.txt is there; CAMIM's captions" in refused()
        evaluate("--captions", "caption")
        assert (tmp_path / "run/evaluate_test_captions-caption.json").is_file()
        assert (tmp_path / "run/pred_test.jsonl").read_bytes() == first
        other = tmp_path / "run/pred_test_captions-caption.jsonl"
        assert len(other.read_bytes().splitlines()) == 30 and other.read_bytes() != first
    (mnre_folder / "txt/dif_test_weight_weak.txt").unlink()
    options = ["--captions", "caption"] if kind == "camim" else []
    assert "none of dif_test_weight_weak.txt" in refused(*options)
