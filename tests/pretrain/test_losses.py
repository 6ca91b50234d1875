"""Objectives against loops written out by hand from the paper's equations."""

import math

import pytest
import torch

from pretrain import losses


def unit(*shape, seed=0):
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(values, dim=-1)


def brute_force_cit(image, text, matched, ids, tau, negatives="matched", normalize_by="matched"):
    """PROMU Eq. 5, one exponential at a time."""
    size, total = len(image), 0.0
    for i in range(size):
        if not matched[i]:
            continue
        for anchor, other in ((image, text), (text, image)):
            denominator = 0.0
            for j in range(size):
                duplicate = i != j and bool((ids[i] == ids[j]).any())
                allowed = negatives == "all" or bool(matched[j])
                if i == j or (allowed and not duplicate):
                    denominator += math.exp(float(anchor[i] @ other[j]) / tau)
            total -= 0.5 * math.log(math.exp(float(anchor[i] @ other[i]) / tau) / denominator)
    count = int(matched.sum()) if normalize_by == "matched" else size
    return total / max(count, 1)


@pytest.mark.parametrize("negatives", ["matched", "all"])
@pytest.mark.parametrize("normalize_by", ["matched", "batch"])
def test_cit_equals_brute_force(negatives, normalize_by):
    image, text = unit(7, 5), unit(7, 5, seed=1)
    matched = torch.tensor([1, 0, 1, 1, 0, 1, 1]).bool()
    ids = torch.tensor([[1, 1], [2, 1], [3, 3], [3, 4], [5, 5], [6, 6], [7, 6]])
    loss = losses.cit_loss(
        image, text, image, text, matched, ids, torch.tensor([0.2]),
        offset=0, negatives=negatives, normalize_by=normalize_by,
    )  # fmt: skip
    expected = brute_force_cit(image, text, matched, ids, 0.2, negatives, normalize_by)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("matched", "expected"), [([0, 0, 0], 0.0), ([0, 1, 0], 0.0)])
def test_cit_without_or_with_one_matched_pair_is_zero_and_attached(matched, expected):
    image, text = unit(3, 4).requires_grad_(), unit(3, 4, seed=1)
    loss = losses.cit_loss(
        image, text, image, text, torch.tensor(matched).bool(), torch.arange(6).view(3, 2),
        torch.tensor([0.07]), offset=0,
    )  # fmt: skip
    loss.backward()
    assert str(loss.item()) == str(expected)  # not -0.0
    assert torch.isfinite(image.grad).all()


def test_soft_label_loss_with_one_hot_is_cross_entropy():
    logits = torch.randn(5, 9)
    labels = torch.tensor([0, 3, 8, 3, 1])
    keep = torch.tensor([1, 1, 0, 1, 0]).bool()
    loss = losses.soft_label_loss(
        logits, torch.nn.functional.one_hot(labels, 9).float(), keep, keep.sum(), world=1
    )
    expected = torch.nn.functional.cross_entropy(logits[keep], labels[keep])
    torch.testing.assert_close(loss, expected)


def test_soft_label_loss_without_objects_is_zero_and_attached():
    logits = torch.randn(4, 3, requires_grad=True)
    nobody = torch.zeros(4, dtype=torch.bool)
    loss = losses.soft_label_loss(logits, torch.full((4, 3), 1 / 3), nobody, nobody.sum(), world=2)
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


def test_hard_labels_are_the_arg_max_of_soft_ones():
    features, bank = unit(6, 8), unit(11, 8, seed=3)
    soft = losses.soft_labels(features, bank, 0.05)
    hard = losses.soft_labels(features, bank, 0.05, "hard")
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(6))
    assert torch.equal(hard.argmax(1), soft.argmax(1)) and torch.equal(hard.sum(1), torch.ones(6))
    by_hand = torch.exp(features[0] @ bank.T / 0.05)
    torch.testing.assert_close(soft[0], by_hand / by_hand.sum(), rtol=1e-4, atol=1e-6)


def test_pool_patches_is_the_weighted_mean_and_zero_for_no_patch():
    patches = torch.randn(2, 4, 3)
    weights = torch.tensor([[0.0, 1.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    pooled = losses.pool_patches(patches, weights)
    torch.testing.assert_close(pooled[0], (patches[0, 1] + 3 * patches[0, 2]) / 4)
    assert not pooled[1].any()


def test_itm_is_binary_cross_entropy_of_the_matched_class():
    logits = torch.tensor([[0.3, -1.0], [2.0, 0.5]])
    loss = losses.itm_loss(logits, torch.tensor([True, False]))
    right = [logits[0].softmax(0)[1], logits[1].softmax(0)[0]]
    assert loss.item() == pytest.approx(-sum(math.log(p) for p in right) / 2)
