"""Two ranks x B pairs give the loss and the gradients of one rank x 2B, all four losses on."""

import pytest
import torch
import torch.distributed as dist
from ranks import spawn

from pretrain import distributed
from pretrain.data.batch import PretrainBatch
from pretrain.model.config import FusionEncoderConfig
from pretrain.model.fusion_encoder import FusionEncoder
from pretrain.model.promu import HeadsConfig, LossConfig, Promu
from pretrain.prompter.bank import PromptBank

PAIRS = 8


def tiny_promu(**loss) -> Promu:
    torch.manual_seed(0)
    config = FusionEncoderConfig(
        vocab_size=40, hidden_size=16, num_attention_heads=2, intermediate_size=32, text_layers=1,
        fusion_layers=1, image_size=16, patch_size=8, vision_hidden_size=16, vision_layers=1,
        vision_heads=2, projection_size=8, hidden_dropout=0.0, attention_dropout=0.0,
    )  # fmt: skip
    heads = HeadsConfig(num_entities=5, num_relations=4)
    model = Promu(FusionEncoder(config), heads, LossConfig(**loss))
    model.entity_bank = PromptBank(torch.nn.functional.normalize(torch.randn(5, 8), dim=1), 0.1)
    model.relation_bank = PromptBank(torch.nn.functional.normalize(torch.randn(4, 8), dim=1), 0.1)
    return model


def batch(case: str, rows: slice) -> PretrainBatch:
    """The same eight pairs on every process; a rank takes a slice of them."""
    random = torch.Generator().manual_seed(1)
    matched = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0]).bool()
    weights = torch.rand(PAIRS, 4, generator=random)
    weights[2] = 0
    if case == "second rank has no matched pair":
        matched[4:] = False
    if case == "second rank has no object":
        weights[4:] = 0
    if case == "nobody has anything":
        matched[:], weights[:] = False, 0
    ids = torch.arange(PAIRS * 2).view(PAIRS, 2)
    ids[6, 0] = ids[3, 0]  # one caption twice, on different ranks
    pixels = torch.randint(0, 256, (PAIRS, 3, 16, 16), generator=random, dtype=torch.uint8)
    return PretrainBatch(
        pixel_values=pixels[rows],
        input_ids=torch.randint(5, 40, (PAIRS, 8), generator=random)[rows],
        attention_mask=torch.ones(PAIRS, 8, dtype=torch.int64)[rows],
        matched=matched[rows],
        ids=ids[rows],
        patch_weights=weights[rows],
        image_feat=torch.randn(PAIRS, 8, generator=random).half()[rows],
        object_feat=torch.randn(PAIRS, 8, generator=random).half()[rows],
    )  # fmt: skip


def loss_and_gradients(case: str, rows: slice, **loss) -> dict[str, torch.Tensor]:
    """Means over ranks, as a data-parallel engine forms them."""
    model = tiny_promu(**loss)
    losses = model(batch(case, rows))
    losses["loss"].backward()
    values = {name: value.detach() for name, value in losses.items()}
    values |= {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: distributed.mean_over_ranks(value) for name, value in values.items()}


CASES = [
    ("plain", {}),
    ("plain", {"cit_negatives": "all", "cit_normalize_by": "batch", "cir_pool": "patch_mean"}),
    ("second rank has no matched pair", {}),
    ("second rank has no object", {}),
    ("nobody has anything", {}),
]


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=2)
    half = PAIRS // 2
    rows = slice(rank * half, (rank + 1) * half)
    results = [loss_and_gradients(case, rows, **loss) for case, loss in CASES]
    if rank == 0:
        torch.save(results, f"{folder}/two.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, interpreter):
    """Every case on two processes, started once."""
    folder = tmp_path_factory.mktemp("two_ranks")
    spawn(interpreter, rank_main, str(folder), ranks=2)
    return torch.load(folder / "two.pt", weights_only=True)


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda n: CASES[n][0])
def test_two_ranks_equal_one(number, two_ranks):
    case, loss = CASES[number]
    one, two = loss_and_gradients(case, slice(None), **loss), two_ranks[number]
    assert one.keys() == two.keys()
    assert {"itm_loss", "cit_loss", "coe_loss", "cir_loss"} < one.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-5, atol=1e-6, msg=name)
