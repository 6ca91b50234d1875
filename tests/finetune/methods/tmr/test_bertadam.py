"""BERT's old Adam, which TMR's and CAMIM's released code trains with."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import free_port, spawn, start_engines

from finetune.methods.tmr.released import BertAdam
from pretrain.optim import adamw, linear_schedule, parameter_groups


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def test_bertadam_against_its_recurrence():
    """transformers' old AdamW: no bias correction, eps beside the root, the decay comes after."""
    start = [numbers(1, 3, 2), numbers(2, 4)]
    decays, rates = (0.1, 0.0), (0.5, 0.25)
    params = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in start]
    groups = [{"params": [p], "lr": lr, "weight_decay": decay}
              for p, lr, decay in zip(params, rates, decays, strict=True)]  # fmt: skip
    optimizer = BertAdam(groups)
    means, squares = ([np.zeros_like(value) for value in start] for _ in range(2))
    for step in range(5):
        for i, parameter in enumerate(params):
            gradient = numbers(10 * step + i, *start[i].shape)
            parameter.grad = torch.from_numpy(gradient)
            means[i] = 0.9 * means[i] + 0.1 * gradient
            squares[i] = 0.999 * squares[i] + 0.001 * gradient**2
            start[i] = start[i] - rates[i] * means[i] / (np.sqrt(squares[i]) + 1e-6)
            start[i] = start[i] - rates[i] * decays[i] * start[i]
        optimizer.step()
        for parameter, expected in zip(params, start, strict=True):
            np.testing.assert_allclose(parameter.detach(), expected, rtol=1e-12)


def test_bertadam_steps_are_larger_than_adamws():
    """tmr.md §4: 3.2 at step 1, at most 6.6, at step 12, 2.0 at 300, 1.26 at 1000."""
    theirs, ours = (torch.nn.Parameter(torch.zeros(1, dtype=torch.double)) for _ in range(2))
    optimizers = [make([{"params": [p], "lr": 1.0, "weight_decay": 0.0}])
                  for make, p in ((BertAdam, theirs), (adamw, ours))]  # fmt: skip
    ratios = []
    for _ in range(1000):
        before = theirs.item(), ours.item()
        theirs.grad, ours.grad = torch.ones(2, 1, dtype=torch.double)
        for optimizer in optimizers:
            optimizer.step()
        ratios.append((theirs.item() - before[0]) / (ours.item() - before[1]))
    for t in (1, 12, 300, 1000):
        exact = (1 - 0.9**t) / (1 - 0.999**t) ** 0.5
        assert ratios[t - 1] == pytest.approx(exact, rel=1e-4)
    assert ratios[0] == pytest.approx(3.2, abs=0.05)
    assert max(ratios) == ratios[11] == pytest.approx(6.6, abs=0.05)
    assert [ratios[299], ratios[999]] == pytest.approx([2.0, 1.26], abs=0.05)


def test_bertadam_leaves_out_what_is_not_finite():
    """As if that step had not been; the moments too."""
    found = []
    for gradients in ([1.0, 2.0], [1.0, torch.nan, 2.0]):
        parameter = torch.nn.Parameter(torch.ones(2))
        optimizer = BertAdam([{"params": [parameter], "lr": 0.1, "weight_decay": 0.1}])
        for gradient in gradients:
            parameter.grad = torch.tensor([gradient, 1.0])
            optimizer.found_inf = (~parameter.grad.sum().isfinite()).float()
            optimizer.step()
        found.append(parameter.detach())
    assert torch.equal(*found) and found[0].isfinite().all()


class Line(torch.nn.Module):
    """The square of a linear map: its gradient grows with the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.line = torch.nn.Linear(4, 1)
        for seed, parameter in enumerate(self.parameters()):
            parameter.data = torch.from_numpy(numbers(seed, *parameter.shape)).float()

    def forward(self, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.line(inputs).square().mean()}


def build(module: torch.nn.Module):
    optimizer = BertAdam(parameter_groups(module.named_parameters(), lr=0.1, weight_decay=0.1))
    return optimizer, linear_schedule(optimizer, 1, 10)


def train(engine, folder: Path) -> list[float]:
    """Losses of four steps, between the second and the third from disk."""
    losses = []
    for step in range(4):
        loss = engine(torch.from_numpy(numbers(step, 2, 4)).float())["loss"]
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        if step == 1:
            engine.save(folder, "half")
            engine.load(folder, "half")
    return losses


def rank_main(rank: int, port: int, folder: str) -> None:
    engines = start_engines(rank, 2, port)
    for stage in range(3):
        tuning = Path(folder) / f"tuning-{stage}-{rank}.json"
        tuning.write_text(json.dumps({"zero_optimization": {"stage": stage}}))
        engine = engines.DeepSpeedEngine(
            Line(), build, precision="fp32", accumulation=1, clip=0.5, micro_batch_size=2,
            tuning=str(tuning),
        )  # fmt: skip
        losses = train(engine, Path(folder) / f"zero{stage}")
        (Path(folder) / f"{stage}-{rank}").write_text(json.dumps(losses))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_bertadam_under_zero(tmp_path, interpreter):
    """Stages 0 to 2 on two ranks, saved and loaded on the way: the losses of one process."""
    from pretrain.engine import SingleEngine

    engine = SingleEngine(Line(), build, precision="fp32", accumulation=1, clip=0.5)
    expected = train(engine, tmp_path / "one")
    spawn(interpreter, rank_main, free_port(), str(tmp_path), ranks=2)
    for stage in range(3):
        for rank in (0, 1):
            found = json.loads((tmp_path / f"{stage}-{rank}").read_text())
            assert found == pytest.approx(expected, rel=1e-5), (stage, rank)
