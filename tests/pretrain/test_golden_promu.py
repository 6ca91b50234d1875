"""Parity with the authors' module: their weights by rule, converted, give their outputs.

`golden/promu.json` holds names, shapes and numbers that the authors' code (commit in `origin`)
produced; weights and inputs are regenerated from seeds by the rules below.
"""

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

from pretrain import losses
from pretrain.checkpoint.authors import from_promu
from pretrain.model.patches import patch_coverage
from pretrain.model.promu import LossConfig, Promu

GOLDEN = json.loads((Path(__file__).parent / "golden/promu.json").read_text())
HIDDEN, OUTPUT = 2e-5, 1e-5  # absolute tolerances recommended with the numbers


def draw(name: str, shape: list[int]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))


def weight(name: str, shape: list[int], kind: str) -> torch.Tensor:
    if kind == "temp":
        return torch.tensor(0.07)
    drawn = np.asarray(draw(name, shape)).astype(np.float32)
    if kind == "scale":
        drawn = np.float32(1) + np.float32(0.02) * drawn
    elif kind == "conv":
        drawn = np.float32(1 / math.sqrt(math.prod(shape[1:]))) * drawn
    else:
        drawn = np.float32(0.02) * drawn
    return torch.from_numpy(drawn)


def authors_state() -> dict[str, torch.Tensor]:
    state = {}
    for name, shape, kind, first in GOLDEN["weights"]:
        if kind == "keep":
            state[name] = torch.arange(shape[1])[None]
        elif kind == "tied":
            source = (
                "cls.predictions.bias"
                if name.endswith("bias")
                else ("bert.embeddings.word_embeddings.weight")
            )
            state[name] = state[f"text_encoder.{source}"]
        else:
            state[name] = weight(name, shape, kind)
            assert state[name].flatten()[0].item() == pytest.approx(first, abs=1e-8), name
    return state


def image(key: str, batch: int, side: int) -> torch.Tensor:
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    offset = rng.standard_normal((batch, 3, 1, 1))
    coarse = rng.standard_normal((batch, 3, side // 32, side // 32))
    fine = rng.standard_normal((batch, 3, side, side))
    return torch.from_numpy(
        (offset + coarse.repeat(32, -2).repeat(32, -1) + 0.5 * fine).astype(np.float32)
    )


@pytest.fixture(scope="module")
def student() -> Promu:
    imported = from_promu(authors_state())
    loss = LossConfig(coe_patch_weighting="coverage", cir_pool="patch_mean")
    model = Promu.from_config(imported.config, loss)
    names = {f"encoder.{name}": name for name in model.encoder.state_dict()}
    names |= {name: name for name in model.state_dict() if name.startswith("heads.")}
    names |= {"temperature": "heads.temperature"}
    model.load_state_dict({ours: imported.state[name] for ours, name in names.items()})
    return model.eval()


def expected(name: str) -> dict:
    return next(item for item in GOLDEN["intermediates"] if item["name"].startswith(name))


def check(name: str, tensor: torch.Tensor, tolerance: float = HIDDEN) -> None:
    """First and last values, mean and deviation of one recorded tensor."""
    record, flat = expected(name), tensor.flatten().double().numpy()
    assert list(tensor.shape) == record["shape"], name
    np.testing.assert_allclose(flat[:8], record["first8"], atol=tolerance, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(flat[-8:], record["last8"], atol=tolerance, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(
        [flat.mean(), flat.std(), np.abs(flat).max()],
        [record["mean"], record["std"], record["absmax"]],
        atol=tolerance,
        rtol=1e-5,
        err_msg=name,
    )


@torch.inference_mode()
def test_released_code_outputs(student):
    inputs, encoder = GOLDEN["inputs"], student.encoder
    ids = torch.tensor(inputs["text_input_ids"])
    length = ids.shape[1]
    mask = (torch.arange(length) < torch.tensor(inputs["lengths"])[:, None]).long()
    matched = torch.tensor(inputs["itm_labels"]).bool()
    pixels = image("promu:pixel_values", len(ids), 224)
    text, vision = encoder.encode_text(ids, mask), encoder.encode_image(pixels)
    fused = encoder.fuse(text, mask, vision)
    real = torch.cat([torch.arange(18), torch.arange(length, fused.shape[1])])

    check("ViT output after final LayerNorm", vision)
    check("text encoder output (layer 5), row 1", text[1, :18])
    check("fusion output (layer 11), row 1", fused[1, real])
    check("fused token 0", fused[:, 0])
    check("fused patches", fused[:, length + 1 :])
    check("vision_proj before", encoder.vision_proj(vision[:, 0]))
    check("text_proj before", encoder.text_proj(text[:, 0]))

    itm_logits = student.heads["itm"](fused[:, 0])
    np.testing.assert_allclose(itm_logits, GOLDEN["itm_logits"], atol=OUTPUT)
    assert losses.itm_loss(itm_logits, matched).item() == pytest.approx(
        GOLDEN["itm_loss"], abs=OUTPUT
    )

    image_feat, text_feat = encoder.image_feat(vision), encoder.text_feat(text)
    temperature = student.clamped_temperature()
    similarity = image_feat @ text_feat.T / temperature
    np.testing.assert_allclose(similarity, GOLDEN["similarity_i2t_divided_by_temp"], atol=2e-5)
    distinct = torch.arange(2 * len(ids)).view(-1, 2)
    released = {"negatives": "all", "normalize_by": "batch"}
    for reading, key in (
        (released, "cit_loss_all_columns_mean_over_B"),
        ({}, "cit_loss_matched_only_computed_by_us"),
    ):
        features = (image_feat, text_feat, image_feat, text_feat, matched, distinct)
        value = losses.cit_loss(*features, temperature, offset=0, **reading)
        assert value.item() == pytest.approx(GOLDEN[key], abs=OUTPUT), key

    patches = fused[:, length + 1 :]
    boxes = np.array(inputs["object_boxes_top_left_width_height"], float)
    top, left, width, height = boxes.T
    corners = np.stack([left, top, left + width, top + height], axis=-1)
    coverage = torch.from_numpy(patch_coverage(corners, size=224, patch=16))
    rows = coverage[0].view(14, 14).sum(dim=1)
    np.testing.assert_allclose(rows, inputs["object_patch_coverage_row_sums_sample0"])
    everyone = torch.ones(len(ids), dtype=torch.bool)
    for head, state, labels, key in (
        ("entity", student.object_state(patches, coverage), "promu:entity_logits", "coe_loss"),
        ("relation", patches.mean(dim=1), "promu:relation_logits", "cir_loss"),
    ):
        name = {"coe_loss": "COE", "cir_loss": "CIR"}[key]
        check(f"{name} pooled", state)
        logits = student.heads[head](state)
        check(f"{name} logits", logits, OUTPUT)
        drawn = torch.from_numpy((3 * draw(labels, [len(ids), 1000])).astype(np.float32))
        value = losses.soft_label_loss(
            logits, drawn.softmax(dim=-1), everyone, everyone.sum(), world=1
        )
        assert value.item() == pytest.approx(GOLDEN[key], abs=OUTPUT)
