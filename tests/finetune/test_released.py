"""Checkpoints in the authors' layouts -> runs that load, with the very weights; base size."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from finetune import released
from finetune.checkpoint import load_method
from finetune.evaluate import seed_directories
from pretrain import convert

GOLDEN = Path(__file__).parents[2].parent / "shared/golden"


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
    assert description["inputs"]["regions"] == "community"
    task_kind = description["task"]["kind"]
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
