"""Checkpoints that DeepSpeed really wrote, against the tensors gathered in the same processes."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import free_port, spawn, start_engines
from warm import Interpreter

from pretrain.checkpoint.run import RunCheckpoints
from pretrain.checkpoint.zero import read_moments, read_zero, take
from pretrain.data.batch import PretrainBatch
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, LossConfig, Promu
from pretrain.tuning import norm_in_one_call, read_tuning
from shards.files import InputError

STAGES = (0, 1, 2, 3)
MOVES = [(2, 1), (1, 2), (2, 0), (0, 2), (3, 0), (0, 3), (3, 1), (1, 3), (3, 3)]
"""(stage that wrote, stage that goes on)"""
LAUNCHES = [
    (2, True),
    *(pytest.param((w, f), marks=pytest.mark.slow) for w, f in [(2, False), (1, True), (1, False)]),
]


def tiny_promu() -> Promu:
    torch.manual_seed(0)
    # Odd sizes: pieces straddle ranks and need padding.
    config = FusionEncoderConfig(
        vocab_size=37, hidden_size=12, num_attention_heads=2, intermediate_size=21, text_layers=1,
        fusion_layers=1, max_position_embeddings=9, image_size=16, patch_size=8,
        vision_hidden_size=10, vision_layers=1, vision_heads=2, projection_size=5,
        hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    return Promu(FusionEncoder(config), HeadsConfig(), LossConfig(coe=0, cir=0))


def batch(rank: int) -> PretrainBatch:
    random = torch.Generator().manual_seed(rank)
    return PretrainBatch(
        pixel_values=torch.randint(0, 256, (2, 3, 16, 16), generator=random, dtype=torch.uint8),
        input_ids=torch.randint(5, 37, (2, 6), generator=random),
        attention_mask=torch.ones(2, 6, dtype=torch.int64),
        matched=torch.tensor([True, False]),
        ids=torch.arange(4).view(2, 2) + 4 * rank,
        patch_weights=torch.rand(2, 4, generator=random),
    )


def gathered(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The whole float32 tensors, as DeepSpeed itself hands them out in the running process."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    state = {name: buffer.clone() for name, buffer in module.state_dict().items()}
    for name, parameter in module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter]):
            state[name] = parameter.detach().clone()
        master = safe_get_full_fp32_param(parameter) if parameter.requires_grad else None
        if master is not None:
            state[name] = master.detach().clone().view(state[name].shape)
    return state


def settings(stage: int) -> dict[str, Any]:
    """Those that are shipped; stage 3's would leave a model this small whole on every rank."""
    shipped = read_tuning(f"launch/zero{stage}.json")["zero_optimization"]
    return {"stage": stage} if stage == 3 else shipped


def build_engine(engines, folder: Path, rank: int, frozen: bool, **deepspeed):
    tuning = folder / f"tuning-{rank}.json"
    tuning.write_text(json.dumps(deepspeed))
    model = tiny_promu()
    model.encoder.vision.requires_grad_(not frozen)

    def build(module):
        matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
        rest = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1 < p.numel()]
        groups = [{"params": matrices}, {"params": rest, "weight_decay": 0.0}]
        # One number: of it the second rank holds nothing but padding.
        groups.append({"params": [module.temperature], "weight_decay": 0.0})
        optimizer = torch.optim.AdamW(groups, lr=1e-2, fused=True)
        return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    return engines.DeepSpeedEngine(
        model, build, precision="fp32", accumulation=1, clip=1.0, micro_batch_size=2,
        tuning=str(tuning),
    )  # fmt: skip


def save_gathered(engine, path: Path) -> None:
    state = gathered(engine.module)  # collective
    if torch.distributed.get_rank() == 0:
        torch.save(state, path)


def third_step(engine) -> None:
    """One step that is the same at every world size: all ranks see the same pairs."""
    engine.backward(engine(batch(0))["loss"])
    engine.step()


def write_main(
    rank: int, world: int, frozen: bool, port: int, folder: str, stages: tuple[int, ...] = STAGES
) -> None:
    engines = start_engines(rank, world, port)
    for stage in stages:
        case = Path(folder) / f"zero{stage}"
        case.mkdir(exist_ok=True)
        engine = build_engine(engines, case, rank, frozen, zero_optimization=settings(stage))
        for _ in range(2):
            engine.backward(engine(batch(rank))["loss"])
            engine.step()
        engine.save(case, "step-2")
        save_gathered(engine, case / "gathered.pt")
        background = RunCheckpoints(case, keep=1, background=True)
        background.save(engine, 2, 8)
        third_step(engine)  # while the files are written
        background.finish()
        save_gathered(engine, case / "third_step.pt")
        (case / f"norm-{rank}").write_text(str(float(engine.grad_norm)))
    if world > 1:
        one_rank_cannot_write(background, engine, rank)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def one_rank_cannot_write(background: RunCheckpoints, engine, rank: int) -> None:
    """Rank 1's disk is full: it says so, and nobody calls the checkpoint complete."""
    write = Path.write_bytes

    def refuse(path, content):
        if rank == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    Path.write_bytes = refuse
    told = False
    background.save(engine, 3, 12)
    try:
        background.finish()
    except InputError as error:
        told = "No space left" in str(error)
    Path.write_bytes = write
    assert told == (rank == 1)
    torch.distributed.barrier()
    assert background.complete_steps() == [2]


def resume_main(
    rank: int, world: int, frozen: bool, port: int, folder: str, moves: list, out: str
) -> None:
    """Continue the checkpoint of each stage at another stage and world size."""
    engines = start_engines(rank, world, port)
    for stage, to_stage in moves:
        place = Path(out) / f"{stage}-{to_stage}"
        place.mkdir(exist_ok=True)
        engine = build_engine(engines, place, rank, frozen, zero_optimization=settings(to_stage))
        found = RunCheckpoints(Path(folder) / f"zero{stage}", keep=1).resume(engine)
        assert found == (2, 8)
        assert not list(Path(folder).glob("zero*/checkpoints/*-universal"))
        save_gathered(engine, place / "gathered.pt")
        third_step(engine)
        save_gathered(engine, place / "third_step.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module", params=LAUNCHES, ids=lambda p: f"world {p[0]} frozen {p[1]}")
def written(request, tmp_path_factory, interpreter):
    """One folder per stage, all written by the same processes; (folder, world, frozen)."""
    pytest.importorskip("deepspeed")
    world, frozen = request.param
    folder = tmp_path_factory.mktemp("zero")
    spawn(interpreter, write_main, world, frozen, free_port(), str(folder), ranks=world)
    return folder, world, frozen


@pytest.mark.parametrize("stage", STAGES)
def test_norm_of_gradients_is_the_same_in_every_stage(written, stage):
    folder, world, _ = written
    whole = float((folder / "zero0/norm-0").read_text())  # by `clip_grad_norm_`, of whole tensors
    norms = [float((folder / f"zero{stage}/norm-{rank}").read_text()) for rank in range(world)]
    assert norms == pytest.approx([whole] * world, rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norm_is_in_fp32_where_gradients_are_summed_in_16_bits(dtype):
    """As `data_types.grad_accum_dtype` of a DeepSpeed file asks for."""
    gradients = [torch.full((300, 300), 300.0, dtype=dtype), torch.full((7,), 3.0, dtype=dtype)]
    zero = SimpleNamespace(get_grad_norm_direct=lambda norms, *_: torch.stack(norms).norm())
    norm_in_one_call(zero)
    whole = torch.cat([g.double().flatten() for g in gradients]).norm()
    assert zero.get_grad_norm_direct(gradients, []).item() == pytest.approx(whole.item(), rel=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_equals_what_the_process_held(written, stage):
    folder, _, frozen = written
    state = read_zero(folder / f"zero{stage}" / "step-2")
    truth = torch.load(folder / f"zero{stage}" / "gathered.pt", weights_only=True)
    initial = tiny_promu().state_dict()
    assert state.keys() == truth.keys() == initial.keys()
    for name, tensor in truth.items():
        assert state[name].dtype == torch.float32
        assert torch.equal(state[name], tensor), name
    changed = {name for name, tensor in state.items() if not torch.equal(tensor, initial[name])}
    assert "heads.itm.weight" in changed
    assert frozen != any("vision." in name for name in changed)
    # Written in the background, while the third step changed the weights.
    steps = RunCheckpoints(folder / f"zero{stage}", keep=1).complete_steps()
    assert steps == [2]
    later = read_zero(folder / f"zero{stage}" / "checkpoints/step-2")
    assert all(torch.equal(later[name], tensor) for name, tensor in truth.items())


@pytest.mark.parametrize("stage", [2, 3])
def test_a_missing_rank_is_named(written, stage, tmp_path):
    folder, world, _ = written
    if world == 1:
        pytest.skip("one rank only")
    for path in (folder / f"zero{stage}" / "step-2").iterdir():
        if "rank_1" not in path.name:
            (tmp_path / path.name).symlink_to(path)
    with pytest.raises(InputError, match="written by 2 ranks, files of 1 are here"):
        read_zero(tmp_path)


@pytest.mark.slow
def test_every_stage_goes_on_as_any_other(written, tmp_path, interpreter):
    """What two ranks wrote goes on on one, and the other way round, with weights and moments."""
    folder, world, frozen = written
    check_continued(interpreter, folder, 3 - world, frozen, MOVES, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "world", "to_stage", "to_world"), [(2, 8, 1, 1), (1, 1, 2, 8)])
def test_eight_ranks(stage, world, to_stage, to_world, tmp_path, interpreter):
    """A run of eight GPUs goes on on one, and the other way round."""
    arguments = (world, True, free_port(), str(tmp_path), (stage,))
    spawn(interpreter, write_main, *arguments, ranks=world)
    check_continued(interpreter, tmp_path, to_world, True, [(stage, to_stage)], tmp_path)


def check_continued(
    python: Interpreter, folder: Path, world: int, frozen: bool, moves: list, out: Path
) -> None:
    """Each on so many ranks: the same weights, and the same third step."""
    arguments = (world, frozen, free_port(), str(folder), moves, str(out))
    spawn(python, resume_main, *arguments, ranks=world)
    for stage, to_stage in moves:
        for moment, tolerance in (("gathered", 0), ("third_step", 2e-5)):
            resumed = torch.load(out / f"{stage}-{to_stage}/{moment}.pt", weights_only=True)
            original = torch.load(folder / f"zero{stage}/{moment}.pt", weights_only=True)
            assert resumed.keys() == original.keys()
            for name, tensor in original.items():
                # With moments lost, Adam's third step alone would be off by up to 1e-2, and with
                # one group's decay in all of them by 1e-4.
                told = f"{stage} -> {to_stage}: {name}"
                off = (resumed[name] - tensor).abs().max().item()
                assert off <= tolerance, (told, off)


def test_moments_of_every_stage_are_those_of_stage_0(written):
    """All stages trained alike; torch's own optimizer wrote those of stage 0, tensor by tensor."""
    folder, _, _ = written
    state = torch.load(folder / "zero0/step-2/mp_rank_00_model_states.pt", weights_only=False)
    groups = torch.load(
        next((folder / "zero1/step-2").glob("mp_rank_00_model*")), weights_only=False
    )["param_shapes"]
    names = [name for group in groups for name in group]
    for stage in STAGES:
        moments = read_moments(folder / f"zero{stage}" / "step-2", names)
        assert list(moments) == names
        for number, kept in enumerate(moments.values()):
            truth = state["optimizer"]["state"][number]
            assert kept["step"] == truth["step"] == 2
            for key in ("exp_avg", "exp_avg_sq"):
                torch.testing.assert_close(kept[key], truth[key], rtol=0, atol=1e-6)


def test_take_crosses_pieces():
    pieces = [torch.arange(0, 3), torch.arange(3, 4), torch.arange(4, 9)]
    for start in range(9):
        for count in range(10 - start):
            assert take(pieces, start, count).tolist() == list(range(start, start + count))
    with pytest.raises(IndexError):
        take(pieces, 5, 5)


def test_no_deepspeed_needed():
    """Converting must work where DeepSpeed is not installed."""
    code = "import sys, pretrain.checkpoint.zero; assert 'deepspeed' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
