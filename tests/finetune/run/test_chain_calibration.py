"""The temperature of a chain, against the sum over all of its sequences."""

import itertools
import json
import math

import pytest
import torch

from finetune.__main__ import main
from finetune.methods.crf import LinearChainCRF
from finetune.predict.extractor import Extractor
from finetune.run import chain_calibration as calibration
from finetune.tasks.metrics import entities
from shards.files import InputError

BIO = ("O", "B-PER", "I-PER")
WORDS = 3


def score(crf, emissions, tags):
    """Of one sequence, by the definition."""
    start, end = crf.start_transitions.detach(), crf.end_transitions.detach()
    found = start[tags[0]] + end[tags[-1]]
    found = found + sum(emissions[place, tag] for place, tag in enumerate(tags))
    steps = crf.transitions.detach()
    return float(found + sum(steps[a, b] for a, b in itertools.pairwise(tags)))


def sequences(crf, emissions, temperature=1.0):
    """Sequence -> probability."""
    every = list(itertools.product(range(len(BIO)), repeat=len(emissions)))
    weights = [math.exp(score(crf, emissions, tags) / temperature) for tags in every]
    return dict(zip(every, (weight / sum(weights) for weight in weights), strict=True))


@pytest.fixture
def chain():
    torch.manual_seed(3)
    crf = LinearChainCRF(BIO)
    with torch.no_grad():
        for parameter in crf.parameters():
            parameter.normal_(std=1.0)
    return crf


def test_entity_probabilities_at_a_temperature(chain):
    emissions, mask = 2 * torch.randn(1, WORDS, 3), torch.ones(1, WORDS).bool()
    asked = [("PER", a, b) for a in range(WORDS) for b in range(a, WORDS)]
    places = torch.arange(WORDS)[None]
    before = chain.entity_probabilities(emissions, mask, places, mask, [asked])
    for temperature in (0.4, 3.0):
        expected = dict.fromkeys(asked, 0.0)
        for tags, share in sequences(chain, emissions[0], temperature).items():
            for entity in entities([BIO[tag] for tag in tags]):
                expected[entity] += share
        chain.temperature = temperature
        (found,) = chain.entity_probabilities(emissions, mask, places, mask, [asked])
        assert found == pytest.approx(list(expected.values()), abs=5e-6)
    chain.temperature = 1.0
    assert chain.entity_probabilities(emissions, mask, places, mask, [asked]) == before


def test_a_chain_that_is_three_times_too_sure(chain):
    """Tags drawn from a chain; one of thrice its scores finds T = 3, and the enumerated loss has
    its least there."""
    generator = torch.Generator().manual_seed(0)
    emissions = torch.randn(600, WORDS, 3, generator=generator)
    drawn = []
    for one in emissions:
        every = sequences(chain, one)
        choice = torch.multinomial(torch.tensor(list(every.values())), 1, generator=generator)
        drawn.append(list(every)[int(choice)])
    sure, mask = chain.scaled(3.0), torch.ones(600, WORDS).bool()
    with calibration.recorded(sure) as asked, torch.no_grad():
        sure.log_likelihood(3 * emissions[:400], torch.tensor(drawn[:400]), mask[:400])
        sure.log_likelihood(3 * emissions[400:], torch.tensor(drawn[400:]), mask[400:])
    assert len(asked) == 2 and "log_likelihood" not in vars(sure)
    loss = {}
    for temperature in (1.0, 2.9, 3.0, 3.1):
        loss[temperature] = calibration.negative_log_likelihood(sure, asked, temperature)
        exact = [
            -math.log(sequences(sure, 3 * one, temperature)[tags])
            for one, tags in zip(emissions[:50], drawn, strict=False)
        ]
        part = [tensor[:50] for tensor in asked[0]]
        found = calibration.negative_log_likelihood(sure, [part], temperature)
        assert found == pytest.approx(sum(exact) / 50, abs=1e-5)
    best = calibration.fit_temperature(
        lambda t: calibration.negative_log_likelihood(sure, asked, t)
    )
    assert best == pytest.approx(3.0, rel=0.12)  # 600 sentences are a sample
    at_best = calibration.negative_log_likelihood(sure, asked, best)
    assert at_best <= min(loss.values()) + 1e-6 and loss[1.0] > at_best + 0.3


def test_valley_by_golden_section():
    assert calibration.fit_temperature(lambda t: (1 / t - 0.8) ** 2) == pytest.approx(1.25, 2e-4)
    assert calibration.fit_temperature(lambda t: t) == pytest.approx(0.05, 1e-3)


def test_what_was_kept_goes_with_its_answers(chain, tmp_path):
    (tmp_path / "pred_dev.jsonl").write_text("{}\n")
    assert calibration.of_seed(tmp_path) is None
    asked = [(torch.randn(4, WORDS, 3), torch.zeros(4, WORDS).long(), torch.ones(4, WORDS).bool())]
    calibration.keep_calibration(chain, asked, tmp_path)
    kept = calibration.of_seed(tmp_path)
    assert kept.sentences == 4 and kept.nll_after <= kept.nll_before
    (tmp_path / "pred_dev.jsonl").write_text("{}\n{}\n")
    assert calibration.of_seed(tmp_path) is None
    (tmp_path / "calibration.json").write_text("{}")
    with pytest.raises(InputError, match=r"calibration\.json: damaged"):
        calibration.of_seed(tmp_path)
    calibration.keep_calibration(None, [], tmp_path / "nowhere")  # a method without a chain


def test_a_training_keeps_it_and_prediction_uses_it(tiny_model, tmp_path):
    """`Ann` and `Bob` are persons; the rest is what the run makes of noise."""
    torch.manual_seed(0)
    folder, names = tmp_path / "data", ("Ann", "Bob", "tonight", "and")
    folder.mkdir()
    for split, size in (("train", 60), ("val", 40)):
        rows = []
        for words in torch.randint(len(names), (size, 4)).tolist():
            tags = ["B-PER" if word < 2 else "O" for word in words]
            rows.append(json.dumps({"tokens": [names[word] for word in words], "tags": tags}))
        (folder / f"{split}.jsonl").write_text("\n".join(rows) + "\n")
    run = tmp_path / "run"
    main(
        f"train --task entities --method bert_crf --data {folder} --init {tiny_model} --out {run} "
        "--images none --optim.epochs 2 --optim.lr 1e-3".split()
    )
    kept = json.loads((run / "seed-1/calibration.json").read_text())
    assert kept["sentences"] == 40 and kept["nll_after"] <= kept["nll_before"] + 1e-6
    extractor = Extractor.from_pretrained(run)
    chain = calibration.chain_of(extractor.run.method)
    assert chain.temperature == kept["temperature"] != 1
    scores = []
    for temperature in (kept["temperature"], 1.0):
        chain.temperature = temperature
        answer = extractor("Ann and Bob tonight")
        scores.append([entity["score"] for entity in answer["entities"]])
    assert len(scores[0]) == len(scores[1]) > 0 and scores[0] != scores[1]
