"""CAMIM's two additions against worked examples and loops."""

import math

import numpy as np
import pytest
import torch
from parts_camim import naive

from finetune.inputs.batch import Batch
from finetune.methods.camim import caption_aware
from finetune.methods.camim import model as camim
from finetune.methods.camim.caption_aware import (
    CaptionAware,
    CrossAttention,
    mutual_information,
    pool_sentence,
)
from finetune.methods.camim.caption_reading import information_loss


def identity_attention(**options):
    module = CrossAttention(2, combine="add", **options).eval()
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            torch.nn.init.eye_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    return module


def test_cross_attention_example():
    """camim.md §3.5: self and cross attention, sums, norm and ELU."""
    x, y = torch.eye(2)[None, None], torch.tensor([[[1.0, 1.0]]])
    module = identity_attention()
    sums = []
    join = module.join
    module.join = lambda own, other: sums.append((own, other)) or join(own, other)
    found = module(x, y)
    own, across = sums[0]
    expected = torch.tensor([[0.6698, 0.3302], [0.3302, 0.6698]])
    torch.testing.assert_close(own[0, 0], expected, atol=5e-5, rtol=0)
    torch.testing.assert_close(across[0, 0], torch.ones(2, 2))
    torch.testing.assert_close(sums[1][1][0, 0], torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close((own + across)[0, 0], expected + 1, atol=5e-5, rtol=0)
    expected = torch.tensor([[0.9998, -0.6321], [-0.6321, 0.9998], [0.0, 0.0]])
    torch.testing.assert_close(found[0, 0], expected, atol=5e-5, rtol=0)


@pytest.mark.parametrize(
    ("swap", "expected"),
    [(False, [[0.5, 1.0], [0.8044, 0.3911]]), (True, [[0.1956, 1.6089], [0.5, 1.0]])],
)
def test_exchanged_roles_example(swap, expected):
    """camim.md §3.5: q = [[0, 0], [2, 0]], k = v = y."""
    module = identity_attention(swap_words=swap)
    with torch.no_grad():  # q(y) swaps the two coordinates and drops the first
        module.word_query[0].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
    sums = []
    join = module.join
    module.join = lambda own, other: sums.append(own) or join(own, other)
    module(torch.eye(2)[None, None], torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]))
    torch.testing.assert_close(sums[1][0, 0], torch.tensor(expected), atol=5e-5, rtol=0)


def test_information_example():
    """camim.md §3.4."""
    original = torch.tensor([[1.0, 0], [3, 4], [0, 2]])
    generated = torch.tensor([[2.0, 0], [5, 0], [1, 1]])
    for direction, expected in (("g2o", 1.008724), ("o2g", 0.980839), ("symmetric", 0.994782)):
        found = mutual_information(generated, original, direction).item()
        assert found == pytest.approx(expected, abs=1e-6)
    same = torch.ones(16, 3)
    assert mutual_information(same, same).item() == pytest.approx(math.log(16))
    assert mutual_information(same[:1], same[:1]).item() == 0
    # One anchor at its partner, all others opposite: the least there is without a temperature.
    signs = torch.tensor([[1.0]] + [[-1.0]] * 15)
    least = torch.nn.functional.cross_entropy((signs[:1] @ signs.T), torch.tensor([0])).item()
    assert (
        least == pytest.approx(math.log(1 + 15 * math.exp(-2))) == pytest.approx(1.1086, abs=1e-4)
    )
    zero = torch.zeros(2, 3, requires_grad=True)
    loss = mutual_information(zero, torch.zeros(2, 3))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and zero.grad.isfinite().all()


def test_information_against_a_loop():
    """Temperature, and rows of one picture that are no negatives of each other."""
    torch.manual_seed(0)
    generated, original = torch.randn(5, 4), torch.randn(5, 4)
    same = torch.tensor([7, 7, 2, 3, 2])
    found = mutual_information(generated, original, "g2o", 0.5, same)
    total = 0.0
    for i in range(5):
        rivals = [j for j in range(5) if j == i or same[j] != same[i]]
        scores = torch.stack([
            torch.cosine_similarity(generated[i], original[j], dim=0) / 0.5 for j in rivals
        ])  # fmt: skip
        total += (scores.logsumexp(0) - scores[rivals.index(i)]).item() / 5
    assert found.item() == pytest.approx(total, abs=1e-6)


def test_information_in_half_precision():
    """A loss is computed in float32, under autocast too."""
    torch.manual_seed(0)
    generated, original = torch.randn(2, 16, 64)
    exact = mutual_information(generated, original)
    with torch.autocast("cpu", torch.bfloat16):
        found = mutual_information(generated, original)
    assert found.dtype == torch.float32 and torch.equal(found, exact)


@pytest.mark.parametrize("direction", ["g2o", "o2g", "symmetric"])
def test_negatives_of_all_processes(monkeypatch, direction):
    """Two processes of three rows each: the mean of their losses is that of the six rows."""
    torch.manual_seed(0)
    generated, original = torch.randn(2, 6, 4)
    pictures = torch.tensor([1, 2, 1, 2, 3, 4])
    whole = mutual_information(generated, original, direction, same=pictures).item()
    unit = [torch.nn.functional.normalize(x, dim=-1) for x in (generated, original)]
    everyone = [*unit, pictures]
    parts = []
    for rank in (0, 1):
        mine = slice(3 * rank, 3 * rank + 3)

        def gather(local, mine=mine):
            (found,) = [x for x in everyone if x[mine].shape == local.shape
                        and torch.equal(x[mine].to(local.dtype), local)]  # fmt: skip
            return found

        monkeypatch.setattr(caption_aware.distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(caption_aware.distributed, "gather", gather)
        own = (x[mine] for x in (generated, original))
        parts.append(mutual_information(*own, direction, same=pictures[mine], gather=True).item())
    assert np.mean(parts) == pytest.approx(whole, abs=1e-6)


def test_unequal_parts_are_not_gathered(monkeypatch):
    """A collective of tensors of different length would hang: last batches, and evaluation."""
    settings, calls = camim.CamimTmrConfig(mi_gather=True), []
    monkeypatch.setattr(caption_aware.distributed, "gather", lambda x: calls.append(1) or x)
    feature = torch.randn(4, 3)
    for weight, training, expected in ((1.0, True, 1), (1.5, True, 0), (1.0, False, 0)):
        batch = Batch(rows=torch.arange(4), input_ids=torch.zeros(4, 2).long(),
                      attention_mask=torch.ones(4, 2).bool(), weight=weight)  # fmt: skip
        with torch.set_grad_enabled(training):
            information_loss(torch.zeros(()), settings, batch, feature, feature)
        assert len(calls) == expected
        calls.clear()


@pytest.mark.parametrize("levels", ["ws", "s", "w"])
@pytest.mark.parametrize("combine", ["concat", "add"])
@pytest.mark.parametrize("word_rows", [True, False])
def test_caption_aware_against_a_loop(levels, combine, word_rows):
    """Several pictures of a source at once, captions of different length, against one by one."""
    torch.manual_seed(0)
    module = CaptionAware(6, levels, combine, word_rows=word_rows).eval()
    pictures, words = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 6)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], dtype=torch.bool)
    sentence = pool_sentence(words, mask, "mean_masked")
    torch.testing.assert_close(sentence[1], words[1, :2].mean(0))
    torch.testing.assert_close(pool_sentence(words, mask, "mean_all")[1], words[1].mean(0))
    assert torch.equal(pool_sentence(words, mask, "cls"), words[:, 0])
    found = module(pictures, sentence, words, mask)
    with torch.no_grad():
        for n in range(2):
            for m in range(3):
                expected = naive(module, pictures[n, m], sentence[n], words[n, mask[n]])
                torch.testing.assert_close(found[n, m, : len(expected)], expected)
