"""Entities of a task closer: type by type, what becomes what, sentences that went wrong most."""

import statistics
from collections.abc import Mapping, Sequence

from finetune.report import figures, pages
from finetune.report.sections import Report
from finetune.run.results import Predictions
from finetune.tasks import metrics


def entities(report: Report, task: str) -> list[pages.Section]:
    """Type by type; what becomes what; sentences that went wrong most."""
    tested = [name for name in report.of_task(task) if report.answers[name]]
    if not tested or report.tasks[task] != "entities":
        return []
    best = tested[0]  # by dev: no figure of test chooses what is shown
    gold = report.answers[best][0].gold
    answers = {n: report.answers[n] for n in tested if report.answers[n][0].gold == gold}
    matrix = report.figure(f"{task}_confusion")
    figures.confusion(*entity_pairs(report.answers[best]), matrix)
    protocol = report.protocol(*answers)
    picture = pages.Picture(
        matrix,
        f"Confusion matrix of entity types of {best} on test of {task}",
        f"{best}: test entities (all seeds) by the type that their exact words were given; None: "
        f"these words are no entity. {protocol}",
    )
    note = "Test F1 of exact span and type, mean over seeds."
    if others := [name for name in tested if name not in answers]:
        note += f" Tested on other rows, and left out: {', '.join(others)}."
    return [
        pages.Section(f"Entity types of {task}", note, [entity_table(answers)], [picture]),
        pages.Section(
            f"As HVPNeT's code counts {task}",
            "Test scores by our scorer, and by that of HVPNeT's code, which PROMU used: words "
            "beyond --max_length or without a word piece are left out there, not missed, and "
            "a tag that no word has (of a chain over word pieces) makes or hides an entity.",
            [scorer_table(answers)],
        ),
        pages.Section(
            f"Hardest cases of {task}",
            f"Test rows where {best} (first seed) made most errors; entities by their words' "
            "numbers, the first word being 0.",
            [entity_cases(report.answers[best][0])],
        ),
    ]


def scorer_table(answers: Mapping[str, Sequence[Predictions]]) -> pages.Table:
    """Our scores and HVPNeT's of the same answers, and how many words and tags they differ in."""
    rows = []
    for name, seeds in answers.items():
        ours = [metrics.entity_scores(a.gold, metrics.padded(a.gold, a.answers)) for a in seeds]
        theirs = [metrics.hvpnet_entity_scores(a.gold, a.answers, a.strays) for a in seeds]
        cut = sum(map(len, seeds[0].gold)) - sum(map(len, seeds[0].answers))
        strays = sum(map(len, seeds[0].strays))
        scores = [
            f"{statistics.mean(seed[key] for seed in scored):.2f}"
            for scored in (ours, theirs)
            for key in ("f1", "precision", "recall")
        ]
        rows.append([name, *scores, str(cut), str(strays)])
    head = ["run", "F1", "P", "R", "HVPNeT's F1", "P", "R", "words cut", "stray tags"]
    return pages.Table(head, rows, numeric=1)


def entity_table(answers: Mapping[str, Sequence[Predictions]]) -> pages.Table:
    """F1 of each type of entity, the runs beside each other."""
    by_run = {
        name: [metrics.entity_scores_by_type(a.gold, a.answers) for a in seeds]
        for name, seeds in answers.items()
    }
    kinds = sorted({kind for seeds in by_run.values() for seed in seeds for kind in seed})
    support = next(iter(by_run.values()))[0]
    rows = [
        [kind, str(int(support.get(kind, {}).get("support", 0)))]
        + [
            f"{statistics.mean([seed.get(kind, {}).get('f1', 0.0) for seed in seeds]):.2f}"
            for seeds in by_run.values()
        ]
        for kind in kinds
    ]
    return pages.Table(["type", "test", *answers], rows, numeric=1)


def entity_pairs(seeds: Sequence[Predictions]) -> tuple[list[str], list[str]]:
    """Gold and predicted type of every span that is an entity in either; None: in one alone."""
    gold, predicted = [], []
    for seed in seeds:
        for truth, guess in zip(seed.gold, seed.answers, strict=True):
            true, said = (
                {(first, last): kind for kind, first, last in metrics.entities(tags)}
                for tags in (truth, guess)
            )
            spans = sorted(true.keys() | said)
            gold += [true.get(span, "None") for span in spans]
            predicted += [said.get(span, "None") for span in spans]
    return gold, predicted


def entity_cases(given: Predictions, most: int = 8) -> pages.Table:
    """The sentences with the most entities missed or invented."""
    rows = []
    for row, truth, guess in zip(given.rows, given.gold, given.answers, strict=True):
        true, said = set(metrics.entities(truth)), set(metrics.entities(guess))
        if wrong := len(true ^ said):
            rows.append([str(row), str(wrong), spelled(true - said), spelled(said - true)])
    rows.sort(key=lambda line: -int(line[1]))
    return pages.Table(["row", "errors", "missed", "invented"], rows[:most], numeric=1)


def spelled(entities: set[metrics.Entity]) -> str:
    """Types with their first and last word."""
    parts = sorted(entities, key=lambda entity: entity[1:])
    return ", ".join(f"{kind} {first}–{last}" for kind, first, last in parts) or "–"
