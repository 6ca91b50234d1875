"""Our layers beside `transformers`' and timm's own: the same draws, states and gradients, bit for
bit, and files that both read."""

import copy

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from transformers import AutoConfig, AutoModel
from transformers.activations import ACT2FN

from pretrain.checkpoint.text import read_bert
from pretrain.model.bert import ARCHITECTURES, Bert
from pretrain.model.bert_layers import ACTIVATIONS
from pretrain.model.vit import PlainViT
from shards.files import InputError

SIZES = {
    "vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 40, "max_position_embeddings": 20,
}  # fmt: skip
FAMILIES = {
    "bert": {"type_vocab_size": 2},
    "roberta": {"type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5},
    "xlm-roberta": {"type_vocab_size": 1, "pad_token_id": 1, "hidden_act": "silu"},
    "electra": {"embedding_size": 16, "hidden_act": "relu"},
}


def pair(family: str, **options):
    """Ours and theirs with the same weights: drawn with the same seed, but where theirs draw the
    positions last."""
    config = AutoConfig.for_model(family, **SIZES, **FAMILIES[family], **options)
    pooler = {} if family == "electra" else {"add_pooling_layer": False}
    models = []
    for build in (Bert, lambda config: AutoModel.from_config(config, **pooler)):
        torch.manual_seed(0)
        models.append(build(copy.deepcopy(config)).eval())
        models[-1].drawn_next = torch.rand(1)
    if "roberta" in family:
        models[0].load_state_dict(models[1].state_dict())
    return models


def same(ours, theirs) -> None:
    assert list(ours) == list(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def batch(pad: int):
    ids = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 6:], mask[2, 2:] = 0, 0
    return ids.masked_fill(mask == 0, pad), mask


def test_all_families_are_tested():
    assert FAMILIES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_draws_states_and_gradients(family):
    ours, theirs = pair(family)
    same(dict(sorted(ours.state_dict().items())), dict(sorted(theirs.state_dict().items())))
    assert torch.equal(ours.drawn_next, theirs.drawn_next)
    ids, mask = batch(ours.config.pad_token_id)
    states = ours(ids, mask, output_hidden_states=True)
    expected = theirs(ids, attention_mask=mask, output_hidden_states=True)
    assert torch.equal(states.last_hidden_state, expected.last_hidden_state)
    for number, state in enumerate(expected.hidden_states):
        assert torch.equal(states.hidden_states[number], state), number
    for model, given in ((ours, states), (theirs, expected)):
        model.zero_grad()
        given.last_hidden_state[mask.bool()].square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(parameter.grad, gradients[name]), name
    whole = torch.ones_like(mask)  # here `transformers` leaves the mask out
    assert torch.equal(
        ours(ids, whole).last_hidden_state, theirs(ids, attention_mask=whole).last_hidden_state
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_embeddings_given_types_and_positions(family):
    ours, theirs = pair(family)
    embeds = torch.randn(2, 5, ours.get_input_embeddings().embedding_dim)
    mask = torch.ones(2, 5, dtype=torch.int64)
    for given in ({}, {"position_ids": torch.tensor([[4, 2, 3, 6, 5]])}):
        given = given | {"inputs_embeds": embeds, "attention_mask": mask}
        assert torch.equal(ours(**given).last_hidden_state, theirs(**given).last_hidden_state)
    ids = torch.randint(5, 50, (2, 5))
    types = torch.zeros_like(ids)
    types[:, 3:] = ours.config.type_vocab_size - 1
    given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
    assert torch.equal(ours(**given).last_hidden_state, theirs(**given).last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("words", [54, 41, 50])
def test_word_tables_are_resized_with_the_same_draws(family, words):
    ours, theirs = pair(family)
    for model, options in ((ours, {}), (theirs, {"mean_resizing": False})):
        torch.manual_seed(1)
        model.resize_token_embeddings(words, **options)
        model.drawn_next = torch.rand(1)
        assert model.config.vocab_size == model.get_input_embeddings().num_embeddings == words
    assert torch.equal(ours.drawn_next, theirs.drawn_next)
    same(dict(sorted(ours.state_dict().items())), dict(sorted(theirs.state_dict().items())))


@pytest.mark.parametrize("family", FAMILIES)
def test_files_are_read_by_both(family, tmp_path):
    ours, theirs = pair(family)
    ours.save_pretrained(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    ids, mask = batch(ours.config.pad_token_id)
    expected = ours(ids, mask).last_hidden_state
    read = AutoModel.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(read(ids, attention_mask=mask).last_hidden_state, expected)
    torch.manual_seed(4)
    drawn_next = torch.rand(1)
    torch.manual_seed(4)
    read = read_bert(tmp_path / "theirs").eval()
    assert torch.equal(torch.rand(1), drawn_next), "reading draws nothing"
    assert torch.equal(read(ids, mask).last_hidden_state, expected)
    assert read.training is False and all(p.requires_grad for p in read.parameters())
    drawn = read_bert(tmp_path / "theirs", random_weights=True).state_dict()
    assert drawn.keys() == ours.state_dict().keys()


def test_layers_that_are_computed_again_give_the_same_gradients():
    ours, _ = pair("bert")
    ids, mask = batch(0)
    gradients = []
    for again in (False, True):
        ours.encoder.checkpointing = again
        ours.train().zero_grad()
        torch.manual_seed(3)
        ours(ids, mask).last_hidden_state.square().sum().backward()
        gradients.append([parameter.grad.clone() for parameter in ours.parameters()])
    assert all(torch.equal(*tensors) for tensors in zip(*gradients, strict=True))


def test_what_is_too_much_or_too_little_is_refused(tmp_path):
    ours, _ = pair("roberta")
    for layers, message in ((3, "16 tensors missing"), (1, "foreign encoder.layer.1")):
        ours.save_pretrained(tmp_path)
        path = tmp_path / "config.json"
        path.write_text(path.read_text().replace(
            '"num_hidden_layers": 2', f'"num_hidden_layers": {layers}'
        ))  # fmt: skip
        with pytest.raises(InputError, match=message):
            read_bert(tmp_path)
    path.write_text(path.read_text().replace('"gelu"', '"xielu"'))
    with pytest.raises(InputError, match=r"config\.json: hidden_act 'xielu' is none of"):
        read_bert(tmp_path)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    values = torch.linspace(-6, 6, 101)
    torch.testing.assert_close(ACTIVATIONS[name](values), ACT2FN[name](values))


def test_longest_texts():
    assert pair("bert")[0].longest_text == 20
    assert pair("roberta")[0].longest_text == 18


def test_the_plain_vit_is_that_of_timm():
    models = []
    for build in (
        lambda: PlainViT(24, 8, 16, 2, 4, 1e-6),
        lambda: VisionTransformer(
            img_size=24, patch_size=8, embed_dim=16, depth=2, num_heads=4, num_classes=0
        ),
    ):
        torch.manual_seed(0)
        models.append(build())
        models[-1].drawn_next = torch.rand(1)
    ours, theirs = models
    same(ours.state_dict(), theirs.state_dict())
    assert torch.equal(ours.drawn_next, theirs.drawn_next)
    pixels = torch.randn(3, 3, 24, 24)
    results = []
    for states, model in ((ours(pixels), ours), (theirs.forward_features(pixels), theirs)):
        states.square().sum().backward()
        results.append([states, *(parameter.grad for parameter in model.parameters())])
    assert all(torch.equal(*tensors) for tensors in zip(*results, strict=True))
    with pytest.raises(ValueError, match="24 a side"):
        ours(torch.randn(1, 3, 16, 16))
