"""AdamW, parameter groups and learning-rate schedule, of pre-training and fine-tuning alike."""

from collections.abc import Callable, Collection, Iterable

import torch
from torch import nn

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
    tower: Callable[[str], str] = lambda name: "",
    tower_scale: float = 1.0,
    rests: Collection[str] = (),
) -> list[dict]:
    """`parameter_groups` whose rate falls by `layer_decay` for each layer above a parameter.

    Args:
        above: parameter name -> number of layers between it and the loss.
        tower: parameter name -> its tower, "" where it is in none.
        tower_scale: factor on the rates of all towers.
        rests: towers whose groups are marked `"rests": True`, for `linear_schedule`.
    """
    members: dict[tuple[bool, bool, int], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named:
        of = tower(name)
        slower = bool(of) and tower_scale != 1
        members.setdefault((of in rests, slower, above(name)), []).append((name, parameter))
    groups = []
    for resting, slower, depth in sorted(members):
        rate = lr * layer_decay**depth * (tower_scale if slower else 1)
        made = parameter_groups(members[resting, slower, depth], lr=rate, weight_decay=weight_decay)
        groups += [group | ({"rests": True} if resting else {}) for group in made]
    return groups


def adamw(
    groups: list[dict], *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
) -> torch.optim.AdamW:
    """torch's AdamW in its fused form: one pass over the parameters, on GPU and CPU alike."""
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)


def linear_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, rest_steps: int = 0
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up whose first step already learns, then linear decay to zero at the last.

    The factor of the s-th update (s = 1 … total) is s/warmup up to the warm-up's end, then
    (total - s)/(total - warmup). In groups marked `rests` it is 0 for the first `rest_steps`, rises
    over as many steps again as the warm-up has, and joins the others' decay.
    """

    def curve(rest: int) -> Callable[[int], float]:
        def factor(done: int) -> float:
            step = done + 1
            if step <= rest:
                return 0.0
            rise = min((step - rest) / warmup_steps, 1.0) if warmup_steps else 1.0
            if step <= warmup_steps:
                return rise
            return rise * max(total_steps - step, 0) / max(total_steps - warmup_steps, 1)

        return factor

    rests = [rest_steps if group.get("rests") else 0 for group in optimizer.param_groups]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, [curve(rest) for rest in rests])
