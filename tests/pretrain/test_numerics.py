"""What is not finite is left out, counted or told with its samples; bf16 points where fp32 does."""

import json
from pathlib import Path

import pytest
import torch
from ranks import free_port, spawn, start_engines
from torch import nn

from pretrain.config import DataConfig, EngineConfig, PretrainConfig
from pretrain.data.batch import PretrainBatch
from pretrain.engine import SingleEngine, autocast
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, LossConfig, Promu
from pretrain.numerics import FiniteWatch, finite_weights, precision_for
from pretrain.optim import adamw, linear_schedule
from pretrain.prompter.bank import PromptBank
from pretrain.train import train
from shards.files import CommonError


class Slope(nn.Module):
    """loss = w · x: its gradient is x, finite or not. ZeRO-3 wants more than one module."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1, bias=False)
        nn.init.ones_(self.line.weight)

    def forward(self, x):
        return {"loss": self.line(x).mean()}


def build(module):
    optimizer = adamw([{"params": list(module.parameters()), "lr": 0.1}])
    return optimizer, linear_schedule(optimizer, 1, 100)


def single() -> SingleEngine:
    return SingleEngine(Slope(), build, precision="fp32", accumulation=1, clip=1.0)


def one_step(engine, watch, step: int, value: float) -> None:
    x = torch.full((1, 4), value)
    loss = engine(x)["loss"]
    engine.backward(loss)
    engine.step()
    watch.saw_loss(step, loss, (f"pair-{step}",))
    watch.saw_gradient(step, engine.grad_norm)


def test_an_update_that_is_not_finite_changes_nothing_and_is_named():
    engine, watch = single(), FiniteWatch("stop")
    one_step(engine, watch, 7, 1.0)
    watch.check(engine.module)
    before = {k: v.clone() for k, v in engine.module.state_dict().items()}
    moments = [v.clone() for s in engine.optimizer.state.values() for v in s.values()]
    one_step(engine, watch, 8, torch.nan)
    assert all(torch.equal(v, before[k]) for k, v in engine.module.state_dict().items())
    after = [v for s in engine.optimizer.state.values() for v in s.values()]
    assert all(torch.equal(one, two) for one, two in zip(moments, after, strict=True))
    one_step(engine, watch, 9, 1.0)
    with pytest.raises(CommonError, match=r"within steps 8…9 \(step 8, loss nan, samples pair-8"):
        watch.check(engine.module)


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
def test_skip_counts_and_goes_on_as_if_the_step_had_not_been():
    engine, watch = single(), FiniteWatch("skip")
    for step, value in enumerate((1.0, torch.inf, 1.0), start=1):
        one_step(engine, watch, step, value)
    watch.check(engine.module)
    assert watch.skipped == 1
    other = single()
    for step in (1, 3):
        other.schedule.last_epoch = step - 2  # the schedule goes by steps, not by updates
        other.schedule.step()
        one_step(other, FiniteWatch("stop"), step, 1.0)
    assert torch.equal(engine.module.line.weight, other.module.line.weight)


def test_a_weight_that_is_not_finite_ends_even_a_run_that_skips():
    engine, watch = single(), FiniteWatch("skip")
    assert finite_weights(engine.module)
    one_step(engine, watch, 3, 1.0)
    engine.module.line.weight.data[0, 2] = torch.inf
    with pytest.raises(CommonError, match="weights are not finite within steps 3…3"):
        watch.check(engine.module)


# ------------------------------------------------------------------ fp16


@pytest.mark.filterwarnings("ignore:Detected call of .lr_scheduler")
def test_fp16_finds_its_loss_scale_and_then_learns_as_fp32_does(tmp_path):
    engine = SingleEngine(Slope(), build, precision="fp16", accumulation=1, clip=1.0)
    watch = FiniteWatch("stop", "fp16")
    # The gradient of each weight is 1; times 2^16 it is beyond float16's 65504.
    for step in (1, 2, 3):
        one_step(engine, watch, step, 1.0)
    watch.check(engine.module)
    assert watch.skipped == 1
    assert engine.scaler.get_scale() == 2**15
    other = single()
    for step in (2, 3):
        other.schedule.last_epoch = step - 2
        other.schedule.step()
        one_step(other, FiniteWatch("stop"), step, 1.0)
    torch.testing.assert_close(engine.module.line.weight, other.module.line.weight)
    assert engine.grad_norm == other.grad_norm == 2
    engine.save(tmp_path, "step-3")
    resumed = SingleEngine(Slope(), build, precision="fp16", accumulation=1, clip=1.0)
    resumed.load(tmp_path, "step-3")
    assert resumed.scaler.get_scale() == 2**15


def test_fp16_that_finds_no_scale_or_meets_a_bad_loss_ends():
    watch = FiniteWatch("stop", "fp16")
    for step in range(1, 32):
        watch.saw_loss(step, torch.tensor(1.0), (f"pair-{step}",))
        watch.saw_gradient(step, torch.inf)
    watch.check(Slope())
    assert watch.skipped == 31
    watch.saw_loss(32, torch.tensor(1.0), ("pair-32",))
    watch.saw_gradient(32, torch.inf)
    with pytest.raises(CommonError, match=r"steps 32…32 \(step 32, loss 1, samples pair-32"):
        watch.check(Slope())
    watch = FiniteWatch("stop", "fp16")
    watch.saw_loss(1, torch.tensor(torch.nan), ("pair-1",))
    watch.saw_gradient(1, torch.nan)
    with pytest.raises(CommonError, match="loss nan"):
        watch.check(Slope())


# ------------------------------------------------------------------ DeepSpeed, two ranks


def rank_main(rank: int, port: int, folder: str, precision: str) -> None:
    """In every ZeRO stage rank 1 alone meets a bad batch in step 2. In fp16 step 1 overflows."""
    engines = start_engines(rank, 2, port)
    for stage in range(4):
        engine = engines.DeepSpeedEngine(
            Slope(), build, precision=precision, accumulation=1, clip=1.0, micro_batch_size=1,
            tuning=f"launch/zero{stage}.json",
        )  # fmt: skip
        watch = FiniteWatch("stop", precision)
        for step in (1, 2, 3):
            one_step(engine, watch, step, torch.nan if (rank, step) == (1, 2) else 1.0)
        message = ""
        try:
            watch.check(engine.module)
        except CommonError as error:
            message = str(error)
        loss = engine(torch.ones(1, 4))["loss"].item()
        norm = float(engine.grad_norm)
        found = [message, loss, norm, engine.engine.lr_scheduler.last_epoch]
        (Path(folder) / f"{stage}-{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_every_zero_stage_leaves_the_update_out_and_names_the_rank(
    precision, tmp_path, interpreter
):
    spawn(interpreter, rank_main, free_port(), str(tmp_path), precision, ranks=2)
    for stage in range(4):
        both = [json.loads((tmp_path / f"{stage}-{rank}").read_text()) for rank in (0, 1)]
        assert both[0] == both[1]
        message, loss, norm, scheduled = both[0]
        assert scheduled == 3  # an update that is left out is a step of the schedule
        assert norm == pytest.approx(2)  # of four ones, whatever the loss was scaled by
        assert "within steps 1…3 (step 2, loss nan, samples pair-2, rank 1)" in message
        assert 3.0 < loss < 4.0  # finite, and lower than at the start


# ------------------------------------------------------------------ 16 bits


def tiny_promu() -> Promu:
    torch.manual_seed(0)
    config = FusionEncoderConfig(
        vocab_size=100, hidden_size=64, num_attention_heads=4, intermediate_size=128,
        text_layers=2, fusion_layers=2, max_position_embeddings=32, hidden_dropout=0.0,
        attention_dropout=0.0, image_size=32, patch_size=8, vision_hidden_size=64,
        vision_layers=2, vision_heads=4, projection_size=32,
    )  # fmt: skip
    model = Promu(FusionEncoder(config), HeadsConfig(num_entities=10, num_relations=7))
    model.entity_bank = PromptBank(nn.functional.normalize(torch.randn(10, 32), dim=-1), 0.1)
    model.relation_bank = PromptBank(nn.functional.normalize(torch.randn(7, 32), dim=-1), 0.1)
    return model


def random_batch(pairs: int) -> PretrainBatch:
    random = torch.Generator().manual_seed(1)
    unit = nn.functional.normalize(torch.randn(2, pairs, 32, generator=random), dim=-1).half()
    return PretrainBatch(
        pixel_values=torch.randint(0, 256, (pairs, 3, 32, 32), generator=random, dtype=torch.uint8),
        input_ids=torch.randint(5, 100, (pairs, 16), generator=random),
        attention_mask=torch.ones(pairs, 16, dtype=torch.int64),
        matched=torch.arange(pairs) % 2 == 0,
        ids=torch.arange(2 * pairs).view(pairs, 2),
        patch_weights=torch.rand(pairs, 16, generator=random),
        image_feat=unit[0],
        object_feat=unit[1],
    )


@pytest.mark.parametrize("low", ["bf16", "fp16"])
def test_gradients_in_16_bits_point_where_those_in_fp32_do(low):
    gradients = {}
    for precision in ("fp32", low):
        model = tiny_promu()
        with autocast(torch.device("cpu"), precision):
            losses = model(random_batch(16))
        assert losses["loss"].dtype == torch.float32
        (losses["loss"] * (1 if precision == "bf16" else 2**10)).backward()
        assert all(p.grad.dtype == torch.float32 for p in model.parameters())
        gradients[precision] = torch.cat([p.grad.flatten() for p in model.parameters()]).double()
    cosine = nn.functional.cosine_similarity(gradients["fp32"], gradients[low], dim=0).item()
    print(f"{low}: cosine {cosine:.6f}")
    assert 0.999 <= cosine < 1  # below 1: 16 bits did take part


def test_a_norm_behind_a_linear_learns_from_every_row_in_bf16():
    """On a CPU: 256 + 1 = 256 in bfloat16, so a sum kept in it would end there."""
    module = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    engine = SingleEngine(module, build, precision="bf16", accumulation=1, clip=1.0)
    engine.backward(engine(torch.ones(4096, 4)).sum())
    norm = module[1]
    assert norm.bias.grad is not None and norm.bias.grad.tolist() == [4096] * 4


# ------------------------------------------------------------------ torch.compile

LENGTHS = (16, 9, 12)


def three_losses(compiled: bool) -> list[float]:
    """Of three steps; the last two have learned from captions of other lengths."""
    model = tiny_promu().train()
    if compiled:
        model.encoder.compile_layers()

    def build(module):
        optimizer = adamw([{"params": list(module.parameters()), "lr": 1e-3}])
        return optimizer, linear_schedule(optimizer, 1, 100)

    engine = SingleEngine(model, build, precision="fp32", accumulation=1, clip=1.0)
    found = []
    for length in LENGTHS:
        batch = random_batch(8)
        batch.input_ids = batch.input_ids[:, :length]
        batch.attention_mask = batch.attention_mask[:, :length].clone()
        batch.attention_mask[0, length - 3 :] = 0
        loss = engine(batch)["loss"]
        engine.backward(loss)
        engine.step()
        found.append(loss.item())
    return found


@pytest.mark.slow
def test_compiled_equals_eager_and_compiles_each_stack_twice_at_most():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    eager, compiled = three_losses(False), three_losses(True)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    print(f"eager {eager}, compiled {compiled}, graphs {graphs}")
    assert compiled == pytest.approx(eager, abs=1e-4)
    assert len(set(eager)) == 3
    assert 3 <= graphs <= 2 + 2 + 1  # text, fusion; the vision tower sees one size
    assert not torch._dynamo.utils.counters["graph_break"]


def test_zero_3_refuses_to_compile(monkeypatch):
    monkeypatch.setattr("pretrain.engine.start", lambda kind: "deepspeed")
    config = PretrainConfig(
        run_dir="x", data=DataConfig(train="y"), loss=LossConfig(coe=0, cir=0),
        engine=EngineConfig(compile=True, deepspeed="launch/zero3.json"),
    )  # fmt: skip
    with pytest.raises(CommonError, match=r"engine\.compile: not under ZeRO-3 \(launch"):
        train(config)


@pytest.mark.parametrize(
    ("able", "name"),
    [
        ({"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"avx512_bf16": False}, "fp32"),
    ],
)
def test_automatic_precision_is_bf16_where_the_cpu_computes_in_it(able, name, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert precision_for("auto", torch.device("cpu")) == name
    assert precision_for("fp32", torch.device("cpu")) == "fp32"
