"""DGF-PT's joint objective against loops."""

import pytest
import torch

from finetune.methods.dgfpt.losses import consistency, contrast, same_posts


def test_consistency_is_the_divergence():
    generator = torch.Generator().manual_seed(0)
    fused, plain = torch.randn(2, 50, 7, generator=generator)
    oracle = torch.nn.functional.kl_div(
        plain.log_softmax(-1), fused.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert consistency(fused, plain) == pytest.approx(oracle.item(), abs=1e-6) and oracle > 0
    assert consistency(plain, plain).item() == pytest.approx(0, abs=1e-7)
    printed = (fused.softmax(-1) * plain.log_softmax(-1)).sum(-1).mean()
    assert consistency(fused, plain, "printed") == pytest.approx(printed.item(), abs=1e-6)
    assert consistency(fused, plain, "ce") == pytest.approx(-printed.item(), abs=1e-6)
    for detach, side in (("pre", 1), ("post", 0)):
        sides = [fused.clone().requires_grad_(), plain.clone().requires_grad_()]
        consistency(*sides, detach=detach).backward()
        assert [s.grad is None or not s.grad.any() for s in sides] == [side == 0, side == 1]


def contrast_by_hand(plain, fused, same, form="corrected", margin=0.2):
    total = 0.0
    for i in range(len(plain)):
        s = [[torch.cosine_similarity(a, b, 0).item() for b in fused] for a in plain]
        others = [j for j in range(len(plain)) if not same[i][j]]
        if not others:
            continue
        for hardest in (max(s[j][i] for j in others), max(s[i][j] for j in others)):
            gap = margin + hardest - s[i][i] if form == "corrected" else s[i][i] - hardest
            total += max(gap, 0)
    return total / len(plain)


@pytest.mark.parametrize("form", ["corrected", "printed"])
def test_contrast_against_loops(form):
    plain, fused = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(3))
    same = torch.eye(6, dtype=torch.bool)
    same[0, 1] = same[1, 0] = True
    same[5] = same[:, 5] = True
    same[5, 5] = True
    found = contrast(plain, fused, same, form)
    assert found.item() == pytest.approx(contrast_by_hand(plain, fused, same, form), abs=1e-6)


def test_contrast_wants_pairs_alike():
    axes, none = torch.eye(4), torch.eye(4, dtype=torch.bool)
    assert contrast(axes, axes, none) == 0
    assert contrast(axes, axes.roll(1, 0), none).item() == pytest.approx(2 * 1.2)
    assert contrast(axes, axes, torch.ones(4, 4, dtype=torch.bool)) == 0  # no negative is left
    plain = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    fused = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    alike = torch.cosine_similarity(plain, fused, -1).sum()
    contrast(plain, fused, torch.eye(5, dtype=torch.bool)).backward()
    step = fused.detach() - 0.1 * fused.grad
    assert torch.cosine_similarity(plain, step, -1).sum() > alike


def test_same_posts():
    ids = torch.tensor([[5, 6, 0], [5, 6, 9], [5, 7, 0]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 0], [1, 1, 0]]).bool()
    assert same_posts(ids, mask).tolist() == [
        [True, True, False], [True, True, False], [False, False, True],
    ]  # fmt: skip
