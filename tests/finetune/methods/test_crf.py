"""The CRF against enumeration, against pytorch-crf, and against a worked example."""

import itertools

import pytest
import torch
from torchcrf import CRF

from finetune.methods.crf import LinearChainCRF, PieceTags, check_mask, illegal_transitions
from finetune.tasks.metrics import STRAY_TAGS, entities, without_strays

BIO = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def random_batch(seed: int, batch: int, length: int, tags: int):
    """Emissions, tags and a mask with rows of every length from 1 to `length`."""
    generator = torch.Generator().manual_seed(seed)
    emissions = torch.randn(batch, length, tags, generator=generator)
    gold = torch.randint(tags, (batch, length), generator=generator)
    lengths = torch.randint(1, length + 1, (batch,), generator=generator)
    lengths[0] = length
    return emissions, gold, torch.arange(length) < lengths[:, None]


def oracle_of(crf: LinearChainCRF) -> CRF:
    """pytorch-crf with the same parameters: the names must agree."""
    oracle = CRF(crf.transitions.shape[0], batch_first=True)
    oracle.load_state_dict(crf.state_dict())
    return oracle


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
def test_brute_force(length):
    torch.manual_seed(length)
    tags = 3
    crf = LinearChainCRF(["O", "B-A", "I-A"])
    emissions = torch.randn(1, length, tags)
    sequences = list(itertools.product(range(tags), repeat=length))

    def score(sequence):
        total = crf.start_transitions[sequence[0]] + crf.end_transitions[sequence[-1]]
        total = total + sum(emissions[0, t, tag] for t, tag in enumerate(sequence))
        return total + sum(crf.transitions[a, b] for a, b in itertools.pairwise(sequence))

    scores = torch.stack([score(sequence) for sequence in sequences])
    mask = torch.ones(1, length, dtype=torch.bool)
    got = torch.cat(
        [crf.log_likelihood(emissions, torch.tensor([sequence]), mask) for sequence in sequences]
    )
    torch.testing.assert_close(got, scores.log_softmax(0))
    assert got.exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert crf.decode(emissions, mask) == [list(sequences[int(scores.argmax())])]


@pytest.mark.parametrize("seed", range(20))
def test_equals_pytorch_crf_with_gradients(seed):
    torch.manual_seed(seed)
    crf = LinearChainCRF([f"tag{i}" for i in range(7)])
    oracle = oracle_of(crf)
    emissions, gold, mask = random_batch(seed, batch=6, length=9, tags=7)
    ours, theirs = emissions.clone().requires_grad_(), emissions.clone().requires_grad_()
    log_likelihood = crf.log_likelihood(ours, gold, mask)
    expected = oracle(theirs, gold, mask=mask, reduction="none")
    torch.testing.assert_close(log_likelihood, expected, atol=1e-4, rtol=1e-5)
    log_likelihood.mean().backward()
    expected.mean().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(crf.transitions.grad, oracle.transitions.grad, atol=1e-5, rtol=1e-4)
    assert crf.decode(emissions, mask) == oracle.decode(emissions, mask=mask)


def test_worked_example():
    """specs/hvpnet.md §3.5."""
    crf = LinearChainCRF(["O", "B-A"])
    with torch.no_grad():
        crf.start_transitions.zero_()
        crf.end_transitions.zero_()
        crf.transitions.copy_(torch.tensor([[0.0, 1.0], [-1.0, 0.0]]))
    emissions = torch.tensor([[[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]]])
    gold = torch.tensor([[0, 1, 1]])
    for mask, expected, path in [
        ([True, True, True], -0.868663, [0, 0, 1]),
        ([True, True, False], -0.440190, [0, 1]),
    ]:
        mask = torch.tensor([mask])
        assert crf.log_likelihood(emissions, gold, mask).item() == pytest.approx(expected, abs=1e-6)
        assert crf.decode(emissions, mask) == [path]


@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
def test_masked_tail_has_no_effect(junk):
    crf = LinearChainCRF(BIO)
    emissions, gold, mask = random_batch(3, batch=4, length=6, tags=5)
    mask[:, 4:] = False
    dirty = emissions.masked_fill(~mask[..., None], junk).requires_grad_()
    ignored = gold.masked_fill(~mask, -100)
    clean = crf.log_likelihood(emissions[:, :4], gold[:, :4], mask[:, :4])
    got = crf.log_likelihood(dirty, ignored, mask)
    torch.testing.assert_close(got, clean)
    got.sum().backward()
    assert torch.isfinite(dirty.grad).all()
    assert (dirty.grad[~mask] == 0).all()
    assert crf.decode(dirty.detach(), mask) == crf.decode(emissions[:, :4], mask[:, :4])


def test_illegal_transitions_never_decoded():
    start, step = illegal_transitions(BIO)
    assert [BIO[i] for i in start.nonzero().flatten().tolist()] == ["I-PER", "I-LOC"]
    legal = {(BIO[a], BIO[b]) for a, b in (~step).nonzero().tolist()}
    assert ("O", "I-PER") not in legal and ("B-LOC", "I-PER") not in legal
    assert {("B-PER", "I-PER"), ("I-PER", "I-PER"), ("I-PER", "B-PER"), ("I-LOC", "O")} <= legal

    torch.manual_seed(0)
    crf = LinearChainCRF(BIO, mask_illegal=True)
    emissions, _, mask = random_batch(7, batch=64, length=8, tags=5)
    free = LinearChainCRF(BIO)
    free.load_state_dict(crf.state_dict())
    for path in crf.decode(emissions, mask):
        names = [BIO[tag] for tag in path]
        assert not names[0].startswith("I-")
        assert all(pair in legal for pair in itertools.pairwise(names))
    assert crf.decode(emissions, mask) != free.decode(emissions, mask)
    # Training sees no constraint: an orphan I- in the data keeps a finite likelihood.
    torch.testing.assert_close(
        crf.log_likelihood(emissions, emissions.argmax(2), mask),
        free.log_likelihood(emissions, emissions.argmax(2), mask),
    )


def test_single_precision_under_autocast():
    crf = LinearChainCRF(BIO)
    emissions, gold, mask = random_batch(1, batch=3, length=30, tags=5)
    expected = crf.log_likelihood(emissions, gold, mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = crf.log_likelihood(emissions, gold, mask)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "mask",
    [torch.ones(1, 3), torch.tensor([[False, True, True]]), torch.tensor([[True, False, True]])],
    ids=["not bool", "empty first", "hole"],
)
def test_bad_masks(mask):
    crf = LinearChainCRF(["O", "B-A"])
    with pytest.raises(ValueError, match="mask"):
        crf.decode(torch.zeros(1, 3, 2), mask)


def test_a_mask_on_a_device_is_not_waited_for():
    """A tensor of shapes alone has no value to ask for."""
    check_mask(torch.ones(2, 3, dtype=torch.bool, device="meta"))


def test_piece_tags():
    """[CLS] Os ##lo ~ in [SEP] pad, where ~ has no piece; and a shorter sentence."""
    tags = PieceTags(BIO)
    assert tags.names.index("X") == 6
    labels = torch.tensor([[3, 0, 0], [1, 0, 0]])
    starts = torch.tensor([[1, 0, 3], [1, 0, 0]])
    word_mask = torch.tensor([[True, True, True], [True, False, False]])
    pieces = torch.arange(6) < torch.tensor([[5], [3]])
    got = tags.from_words(labels, starts, word_mask, pieces)
    names = [[tags.names[tag] for tag in row] for row in got.tolist()]
    assert names == [
        ["[CLS]", "B-LOC", "X", "O", "[SEP]", "PAD"],
        ["[CLS]", "B-PER", "[SEP]", "PAD", "PAD", "PAD"],
    ]
    paths = [row[:length] for row, length in zip(got.tolist(), (5, 3), strict=True)]
    assert tags.to_words(paths, starts, word_mask) == [[3, 9, 0], [1]]  # 9: no piece
    odd = [[0, tags.names.index("X"), 0, 2, 0], [0, tags.names.index("[SEP]"), 0]]
    words = tags.to_words(odd, starts, word_mask)
    stray = [[(*BIO, *STRAY_TAGS)[tag] for tag in row] for row in words]
    assert stray == [["X", "", "B-PER"], ["[SEP]"]]


# ---------------------------------------------------------------------- probability of an entity


def enumerated(crf: LinearChainCRF, emissions: torch.Tensor, legal: bool):
    """Every tag sequence of a sentence (length, K) with its probability, written out."""
    start, end = crf.start_transitions.tolist(), crf.end_transitions.tolist()
    step, rows = crf.transitions.tolist(), emissions.tolist()
    sequences = list(itertools.product(range(len(start)), repeat=len(rows)))
    if legal:
        sequences = [s for s in sequences if is_legal([crf.labels[tag] for tag in s])]
    scores = [
        start[s[0]] + end[s[-1]] + sum(row[tag] for row, tag in zip(rows, s, strict=True))
        + sum(step[a][b] for a, b in itertools.pairwise(s))
        for s in sequences
    ]  # fmt: skip
    return zip(
        sequences, torch.tensor(scores, dtype=torch.float64).softmax(0).tolist(), strict=True
    )


def is_legal(names: list[str]) -> bool:
    """`I-x` follows `B-x` or `I-x`."""
    pairs = itertools.pairwise(["O", *names])
    return all(name[0] != "I" or before in (f"B{name[1:]}", name) for before, name in pairs)


def wide(crf: LinearChainCRF) -> LinearChainCRF:
    """Scores that matter: at the initial ±0.1 the chain would be almost independent."""
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_(std=1.5)
    return crf


@pytest.mark.parametrize("legal", [False, True])
def test_entity_probabilities_are_sums_over_all_sequences(legal):
    """Every entity of every sentence of 1 to 5 words at once; what is masked is not read."""
    torch.manual_seed(11)
    crf = wide(LinearChainCRF(BIO, mask_illegal=legal))
    emissions, mask = 2 * torch.randn(5, 6, len(BIO)), torch.arange(6) < torch.arange(1, 6)[:, None]
    asked = [
        [(kind, a, b) for kind in ("PER", "LOC") for a in range(n) for b in range(a, n)]
        for n in range(1, 6)
    ]
    expected = [dict.fromkeys(some, 0.0) for some in asked]
    for row, sums in enumerate(expected):
        for tags, share in enumerated(crf, emissions[row, : row + 1], legal):
            for entity in entities([BIO[tag] for tag in tags]):
                sums[entity] += share
    dirty = emissions.masked_fill(~mask[..., None], float("nan"))
    places = torch.arange(6).expand(5, -1)
    found = crf.entity_probabilities(dirty, mask, places, mask, asked)
    for given, sums in zip(found, expected, strict=True):
        assert given == pytest.approx(list(sums.values()), abs=2e-6)
        assert max(given) <= 1
    assert max(map(max, found)) > 0.5
    assert crf.entity_probabilities(dirty, mask, places, mask, [[]] * 5) == [[]] * 5
    some = [[], asked[1][:1], [], [], asked[4][3:5]]
    part = crf.entity_probabilities(dirty, mask, places, mask, some)
    assert [len(row) for row in part] == [0, 1, 0, 0, 2]
    assert part[4] == pytest.approx(found[4][3:5], abs=1e-6)


def test_entity_probabilities_of_a_chain_of_pieces():
    """Words are read at first pieces, one without any at [CLS]; the other pieces are free."""
    torch.manual_seed(5)
    pieces = PieceTags(["O", "B-A", "I-A"])
    crf = wide(LinearChainCRF(pieces.names))
    emissions = torch.randn(2, 5, 7)
    mask = torch.tensor([[True] * 5, [True] * 4 + [False]])
    places = torch.tensor([[1, 3, 4], [1, 0, 2]])
    words = torch.tensor([[True, True, True], [True, True, False]])
    asked = [[("A", a, b) for a in range(n) for b in range(a, n)] for n in (3, 2)]
    found = crf.entity_probabilities(emissions, mask, places, words, asked)
    for row, some in enumerate(asked):
        sums = dict.fromkeys(some, 0.0)
        for path, share in enumerated(crf, emissions[row][mask[row]], legal=False):
            (tags,) = pieces.to_words([path], places[row : row + 1], words[row : row + 1])
            said, _ = without_strays([("O", "B-A", "I-A", *STRAY_TAGS)[tag] for tag in tags])
            for entity in entities(said):
                sums[entity] += share
        assert found[row] == pytest.approx(list(sums.values()), abs=2e-6)
    assert max(map(max, found)) > 0.1


def test_entity_probabilities_in_half_precision_and_long_sentences():
    """bf16 emissions under autocast, 400 words: finite, and the chain is still in fp32."""
    torch.manual_seed(2)
    crf = wide(LinearChainCRF(BIO))
    emissions, mask = 8 * torch.randn(1, 400, 5).bfloat16(), torch.ones(1, 400, dtype=torch.bool)
    places = torch.arange(400)[None]
    asked = [entities([BIO[tag] for tag in crf.decode(emissions, mask)[0]])]
    with torch.autocast("cpu", torch.bfloat16):
        (found,) = crf.entity_probabilities(emissions, mask, places, mask, asked)
    (exact,) = crf.double().entity_probabilities(emissions, mask, places, mask, asked)
    assert len(found) > 100 and found == pytest.approx(exact, abs=1e-3)
