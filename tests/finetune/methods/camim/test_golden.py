"""CAMIM against the authors' numbers, and the names of their checkpoint."""

import dataclasses

import pytest
import torch
from transformers import BertConfig

from finetune.inputs.batch import Batch
from finetune.methods.camim import model as camim
from finetune.methods.camim.caption_aware import (
    mutual_information,
)
from finetune.methods.camim.model import CamimTmr
from finetune.methods.camim.names import convert_state
from finetune.methods.tmr.fusion import Look, last_maps
from finetune.methods.towers.resnet import load_resnet
from finetune.tasks.base import TaskInfo
from finetune.tasks.mnre import MARKERS
from pretrain.model.bert import Bert
from shards.files import InputError


def authors(golden):
    """The authors' module as ours, its inputs, and what its pictures show."""
    inputs, rows = golden["inputs"], golden["inputs"]["B"]
    task = TaskInfo("mnre", "relation", tuple(map(str, range(23))), MARKERS)
    with torch.device("meta"):
        bert = Bert(BertConfig(vocab_size=30526))
    bert.to_empty(device="cpu")
    bert.embeddings.position_ids = torch.arange(512)[None]
    bert.embeddings.token_type_ids = torch.zeros(1, 512, dtype=torch.long)
    vision = load_resnet("resnet50.a1_in1k", random_weights=True)
    method = CamimTmr(bert, vision, task, camim.CamimTmrConfig(profile="legacy")).eval()
    missing, foreign = method.load_state_dict(convert_state(golden.weights()), strict=False)
    assert not foreign and all(name.endswith("num_batches_tracked") for name in missing)

    phrases = torch.tensor(inputs["phrase"])
    batch = Batch(
        rows=torch.arange(rows),
        input_ids=torch.tensor(inputs["token"]),
        attention_mask=torch.arange(128) < torch.tensor(inputs["lengths"])[:, None],
        labels=torch.tensor(inputs["labels"]),
        head_start=torch.tensor(inputs["pos1"])[:, 0],
        tail_start=torch.tensor(inputs["pos2"])[:, 0],
        phrase_ids=phrases,
        phrase_mask=torch.ones_like(phrases, dtype=torch.bool),
        scores=torch.tensor(inputs["weights"]).view(-1, 2, 2),
        caption_ids=torch.tensor(inputs["caption"]),
        caption_mask=torch.arange(40) < torch.tensor(inputs["caption_lengths"])[:, None],
    )
    crops = {name: golden.pictures(f"crops_{name}", rows, 3) for name in ("ori", "gen")}
    crops["gen"][0, 2] = 0
    crops["ori"][1, 1:] = 0
    wholes = [golden.pictures(f"image_{name}", rows) for name in ("ori", "gen")]
    maps = last_maps(lambda pixels: vision(pixels)[-1], [*wholes, crops["ori"], crops["gen"]], True)
    seen = torch.ones(rows, dtype=torch.bool)
    return method, batch, [Look(maps[0], seen, maps[2]), Look(maps[1], seen, maps[3])]


@torch.inference_mode()
def test_golden(golden):
    """Logits, InfoNCE, similarities, aligned rows; and with query and key not exchanged."""
    golden = golden("camim")
    method, batch, looks = authors(golden)
    aligned, found = [], {}
    method.aware.register_forward_hook(lambda *hooked: aligned.append(hooked[-1]))
    of_loss = method.total_loss

    def total_loss(loss, batch, pair, features, final):
        found.update(features=features, cross_entropy=loss)
        return of_loss(loss, batch, pair, features, final)

    method.total_loss = total_loss
    output = method.relate(batch, looks)

    def close(ours, expected, atol=2e-5):
        torch.testing.assert_close(ours, torch.tensor(expected), atol=atol, rtol=1e-5)

    exact = golden["alternatives"]["phrase_mask_all_ones"]
    close(output.logits, exact["logits"])
    close(output.logits, golden["logits_float64"])
    close(output.logits, golden["logits"], atol=5e-4)
    assert found["cross_entropy"].item() == pytest.approx(golden["cross_entropy"], abs=3e-4)
    assert output.loss.item() == pytest.approx(golden["total_loss_alpha_0p1"], abs=3e-4)
    original, generated = found["features"]
    assert mutual_information(generated, original).item() == pytest.approx(
        exact["infonce"], abs=1e-6
    )
    other = mutual_information(generated, original, "o2g").item()
    assert other == pytest.approx(golden["infonce_other_direction_computed_by_us"], abs=5e-5)
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (generated, original)]
    close(unit[0] @ unit[1].T, golden["similarity_rows_generated_columns_original"], atol=1e-4)
    for k, name in enumerate(("ori", "gen")):
        for m, which in ((0, f"Z_{name}"), (1, "CAM output of ")):
            which += {"ori": "original crop 0", "gen": "generated crop 0"}[name] if m else ""
            recorded, rows = golden.intermediate(which), aligned[k][:, m]
            assert list(rows.shape) == recorded["shape"] == [3, 89, 768]
            close(rows.flatten()[:8], recorded["first8"])
            close(rows.flatten()[-8:], recorded["last8"])
            assert rows.std(correction=0).item() == pytest.approx(recorded["std"], abs=2e-5)
    reversed_rows = dataclasses.replace(batch, **{
        field.name: value.flip(0) for field in dataclasses.fields(batch)
        if isinstance(value := getattr(batch, field.name), torch.Tensor)
    })  # fmt: skip
    flipped = [Look(look.whole.flip(0), look.seen, look.regions.flip(0)) for look in looks]
    close(method.relate(reversed_rows, flipped).logits, exact["logits"][::-1])
    method.aware.attention.swap_words = False
    expected = golden["alternatives"]["cam_word_self_attention_standard"]["logits"]
    close(method.relate(batch, looks).logits, expected, atol=5e-4)


def test_names_of_the_checkpoint(golden):
    """Every name is ours or named as unused; an unknown one is refused."""
    names = {name: torch.zeros(8, 1) for name, *_ in golden("camim")["weights"]}
    converted = convert_state(names)
    assert {name.split(".")[0] for name in converted} == {
        "encoder", "caption_encoder", "vision", "reduce", "aware", "head"
    }  # fmt: skip
    assert len([name for name in converted if name.startswith("aware.")]) == 24
    with pytest.raises(InputError, match=r"not a checkpoint of CAMIM: 1 unknown names: .*bert3"):
        convert_state({**names, "sentence_encoder.bert3.x": torch.zeros(1)})
