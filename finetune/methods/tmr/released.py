"""What TMR's released code does that no setting names: lengths, empty regions, an optimizer.

CAMIM's is built on it. `--optim.optimizer bertadam` chooses the optimizer for any method.
"""

import torch
from torch import Tensor

from finetune.methods.towers.resnet import ResNetPyramid

LENGTHS = {"relation": 128, "entities": 70}
"""Word pieces that every sentence is padded to, and all of which are attended to; for entities with
a layer for each."""
MOMENTS = ("exp_avg", "exp_avg_sq")


def empty_regions(vision: ResNetPyramid, size: int, rows: int, regions: int) -> Tensor:
    """(B, R, P, C): what the vision tower sees in squares of the mean colour.

    In the place of the regions of generated pictures, which the released code for entities loses.
    """
    last_map = vision(vision.mean.new_zeros(1, 3, size, size))[-1]
    return last_map.flatten(2).transpose(1, 2).expand(rows, regions, -1, -1)


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
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; none where `found_inf` is 1 (`numerics.clip_or_leave_out`)."""
        overflow = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            for p in params:
                if not self.state[p]:
                    self.state[p] |= {name: torch.zeros_like(p) for name in MOMENTS}
            first, second = ([self.state[p][name] for p in params] for name in MOMENTS)
            grads = [p.grad for p in params]
            squares = list(torch._foreach_mul(grads, grads))
            lr = group["lr"]
            if overflow is not None:  # the moments move to where they are; nothing asks the host
                bad, lr = overflow.bool(), lr * (1 - overflow)
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
