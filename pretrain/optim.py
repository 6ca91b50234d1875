"""AdamW, parameter groups and learning-rate schedule, of pre-training and fine-tuning alike."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

_MOMENTS = ("exp_avg", "exp_avg_sq")
_NEVER_DECAYED = ("temperature", "cls_token", "pos_embed", "position_embeddings", "token_type")


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Weight decay is for matrices: not for biases, norms, temperature, position or type tables."""
    return parameter.ndim > 1 and not any(part in name for part in _NEVER_DECAYED)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], *, lr: float, weight_decay: float
) -> list[dict]:
    """Two groups, with and without decay, of the trainable parameters; empty ones are left out."""
    trainable = [(name, p) for name, p in named if p.requires_grad]
    with_decay = [p for name, p in trainable if decays(name, p)]
    without = [p for name, p in trainable if not decays(name, p)]
    groups = [
        {"params": with_decay, "lr": lr, "weight_decay": weight_decay},
        {"params": without, "lr": lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def layerwise_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    layer_decay: float,
    above: Callable[[str], int],
) -> list[dict]:
    """`parameter_groups` whose rate falls by `layer_decay` for each layer above a parameter.

    above: parameter name -> number of layers between it and the loss.
    """
    by_depth: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        by_depth.setdefault(above(name), []).append((name, parameter))
    return [
        group
        for depth in sorted(by_depth)
        for group in parameter_groups(
            by_depth[depth], lr=lr * layer_decay**depth, weight_decay=weight_decay
        )
    ]


def adamw(
    groups: list[dict],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> torch.optim.AdamW:
    """torch's AdamW in its fused form: one pass over the parameters, on GPU and CPU alike."""
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)


class BertAdam(torch.optim.Optimizer):
    """AdamW without bias correction and with the decay after the step, as `transformers` had it.

    The first steps are larger than AdamW's, by (1 - b1^t) / sqrt(1 - b2^t): 3.2 at step 1, at most
    6.6, 2.0 at step 300.
    """

    def __init__(
        self, groups: list[dict], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-6
    ) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update; none where `found_inf` is 1 (`engine.clip_or_leave_out`)."""
        found = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] |= {name: torch.zeros_like(p) for name in _MOMENTS}
            first, second = ([self.state[p][name] for p in params] for name in _MOMENTS)
            grads = [p.grad for p in params]
            squares = torch._foreach_mul(grads, grads)
            lr = group["lr"]
            if found is not None:  # the moments move to where they are; nothing asks the host
                bad, lr = found.bool(), lr * (1 - found)
                grads = [torch.where(bad, *pair) for pair in zip(first, grads, strict=True)]
                squares = [torch.where(bad, *pair) for pair in zip(second, squares, strict=True)]
            torch._foreach_lerp_(first, grads, 1 - group["betas"][0])
            torch._foreach_lerp_(second, squares, 1 - group["betas"][1])
            scale = torch._foreach_sqrt(second)
            torch._foreach_add_(scale, group["eps"])
            update = torch._foreach_div(first, scale)
            torch._foreach_mul_(update, -lr)
            torch._foreach_add_(params, update)
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])


def linear_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up whose first step already learns, then linear decay to zero at the last.

    The factor of the s-th update (s = 1 … total) is s/warmup up to the warm-up's end, then
    (total - s)/(total - warmup).
    """

    def factor(done: int) -> float:
        step = done + 1
        if step <= warmup_steps:
            return step / warmup_steps
        return max(total_steps - step, 0) / max(total_steps - warmup_steps, 1)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
