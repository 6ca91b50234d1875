"""The sections of a report: tables and figures, each with the protocol that it rests on."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.protocols import PROTOCOLS, seed_files
from finetune.report import figures, galleries, series, tables
from finetune.report.pages import Picture, Section, Table
from finetune.run import calibration
from finetune.run.results import Predictions, Results
from finetune.tasks.metrics import negative_class

Lines = Sequence[Mapping[str, float]]
"""Of a `metrics.jsonl`."""
CHOICE = "the epoch is chosen on dev, test is read once"


@dataclass(frozen=True)
class Report:
    """What a report is made of."""

    runs: Mapping[str, Path]
    results: Results
    answers: Mapping[str, Sequence[Predictions]]
    """Run -> test answers of each seed."""
    out: Path
    """The Markdown file; figures lie beside it."""
    seed: int = 0
    """Of the rows that are drawn to be shown, and of the bootstrap."""
    changed: Collection[str] = ()
    """Runs whose inputs are others by now."""

    def parts(self) -> list["Report"]:
        """Runs whose inputs tell the label apart from the others: they never share a table."""
        parts = []
        for leaky in (False, True):
            names = [name for name, result in self.results.items() if result["leaky"] == leaky]
            runs = {name: self.runs[name] for name in names}
            results = {name: self.results[name] for name in names}
            answers = {name: self.answers[name] for name in names}
            out = self.out.with_name(f"{self.out.stem}_leaky.md" if leaky else self.out.name)
            part = Report(runs, results, answers, out, self.seed, self.changed)
            parts += [part] if names else []
        return parts

    def figure(self, kind: str) -> Path:
        """Where a figure goes."""
        return self.out.with_name(f"{self.out.stem}_{kind}.png")

    def of_task(self, task: str) -> list[str]:
        """Its runs, the best by dev first."""
        names = [name for name, result in self.results.items() if result["task"] == task]
        return sorted(names, key=lambda name: -self.results[name]["dev"]["f1"]["mean"])

    @property
    def tasks(self) -> dict[str, str]:
        """Task -> kind."""
        return {r["task"]: r["provenance"]["kind"] for r in self.results.values()}

    def protocol(self, *names: str) -> str:
        """A sentence on runs (none named: all): their seeds, and who chose the epoch."""
        counts = {len(self.results[name]["per_seed"]) for name in names or self.results}
        seeds = "One seed" if counts == {1} else f"{min(counts)} seeds"
        if len(counts) > 1:
            seeds = f"{min(counts)} to {max(counts)} seeds"
        return f"{seeds}; {CHOICE}."


# ---- What was run, and what came out -------------------------------------------------------------


def runs(report: Report, curves: Mapping[str, Lines]) -> list[Section]:
    """Figures of every run, their protocol, their training."""
    path = report.figure("f1")
    figures.bars(report.results, path)
    bars = Picture(
        path, "Bars: F1 of every run, dev beside test", f"F1 of every run. {report.protocol()}"
    )
    note = (
        "Percent; mean ± standard deviation over seeds; in brackets the 95 % bootstrap interval of "
        f"test F1 over rows. In every run {CHOICE}. Runs that use an input which tells the label "
        "are marked *leaky* and stand apart: they are comparable with nothing else."
    )
    table = tables.main_table(report.results, report.answers, report.seed, report.changed)
    return [
        Section("Runs", note, [table], [bars]),
        protocols(report),
        training(report, curves),
    ]


def protocols(report: Report) -> Section:
    """How the figures came about."""
    used = dict.fromkeys(result["protocol"] for result in report.results.values())
    rules = "; ".join(
        f"{name}: of the epochs from {PROTOCOLS[name].first_epoch} on, the {PROTOCOLS[name].ties} "
        f"of equal dev F1 ({PROTOCOLS[name].source})"
        for name in used
        if name in PROTOCOLS
    )
    versions = [
        ", ".join(f"{k} {v}" for k, v in result["provenance"]["versions"].items())
        for result in report.results.values()
    ]
    kinds = set(report.tasks.values())
    metric = ["relations: micro precision, recall and F1 over all but None, accuracy over all"]
    metric = metric * ("relation" in kinds) + ["entities: exact span and type"] * (
        "entities" in kinds
    )
    note = f"{rules}. Scores of {'; of '.join(metric)}. {' | '.join(dict.fromkeys(versions))}."
    return Section("Protocol", note, [tables.protocol_table(report.results)])


def training(report: Report, curves: Mapping[str, Lines]) -> Section:
    """Loss and dev F1 over epochs."""
    path = report.figure("curves")
    figures.curves(curves, path)
    caption = f"Training loss, and the dev F1 that chooses the epoch. {report.protocol()}"
    alt = "Lines: training loss and dev F1 over epochs, a line a seed"
    return Section("Training", "", [], [Picture(path, alt, caption)])


def few_labels(report: Report) -> list[Section]:
    """Where runs of a task differ in the share of train; scores of two tasks are no two values of
    one thing, and share no table."""
    sections = []
    for task in report.tasks:
        results = {name: report.results[name] for name in report.of_task(task)}
        if (table := tables.fraction_table(results)) is None:
            continue
        alone = len(report.tasks) == 1
        path = report.figure("few_labels" if alone else f"{task}_few_labels")
        figures.study(series.few_labels(results), path)
        scored = "Test F1 (dev where there is no test)"
        caption = f"{scored} over shares of the training rows. {report.protocol(*results)}"
        picture = Picture(path, "Lines: test F1 over shares of the training rows", caption)
        note = (
            f"{scored} over shares of train. Runs of a line differ in nothing else but, where they "
            "do, in how long they train and how often dev is read."
        )
        title = "Few labels" if alone else f"Few labels of {task}"
        sections.append(Section(title, note, [table], [picture]))
    return sections


def views(report: Report) -> list[Section]:
    """What runs under views were shown, and F1 over the strength of a view."""
    if (table := tables.view_table(report.results)) is None:
        return []
    pictures = []
    if curves := series.strengths(report.results):
        path = report.figure("views")
        figures.study(curves, path)
        caption = f"F1 under views of growing strength. {report.protocol()}"
        pictures = [Picture(path, "Lines: F1 over the strength of views", caption)]
    return [Section("Views", "What each changed run was shown.", [table], pictures)]


def studies(report: Report, paths: Sequence[Path]) -> list[Section]:
    """The curves of `study.json` files."""
    sections = []
    for number, path in enumerate(paths):
        study, png = series.read_study(path), report.figure(f"study{number + 1}")
        figures.study(study.tables, png)
        picture = Picture(
            png,
            f"Curves of the study {study.name}: {', '.join(one['title'] for one in study.tables)}",
            f"Test F1 (dev where there is no test), seeds {study.seeds}; {CHOICE}.",
        )
        sections.append(Section(f"Study: {study.name}", f"From {path}.", [], [picture]))
    return sections


def audit(report: Report) -> list[Section]:
    """Whether an input tells the label."""
    note = (
        "A look-up table of which inputs a row has, fitted on train and scored on dev, without "
        "text or pixels, against always giving the commonest relation."
    )
    return [Section("Leak audit", note, [tables.audit_table(report.results)])]


def calibrated(report: Report) -> list[Section]:
    """What the temperature that `predict` uses does to each run's probabilities."""
    rows = []
    for name, run in report.runs.items():
        seed = next(iter(seed_files(run, "pred_dev.jsonl")), None)
        if seed is None or report.results[name]["provenance"]["kind"] != "relation":
            continue
        labels = list(report.results[name]["per_seed"][0]["train_counts"])
        if (dev := calibration.read_answers(seed, labels)) is None:
            continue
        fitted = calibration.calibrate(*dev)
        errors = [fitted.ece_before, fitted.ece_after, fitted.ece_after_held_out]
        # On test the temperature of dev is applied, never fitted: what `predict` will do to posts.
        test = seed.with_name("pred_test.jsonl")
        if test.is_file() and (answers := calibration.read_answers(test, labels)) is not None:
            shares, gold = answers
            sharpened = calibration.sharpen(shares, fitted.temperature)
            errors += [calibration.calibration_error(x, gold) for x in (shares, sharpened)]
        cells = [f"{error:.1f}" for error in errors] + ["–"] * (5 - len(errors))
        rows.append([name, f"{fitted.temperature:.2f}", str(fitted.rows), *cells])
    head = ["run", "temperature", "dev rows", "dev before", "after", "after, held out"]
    head += ["test before", "after"]
    note = (
        "Expected calibration error in percent (15 bins), first seed, before and after one "
        "temperature that is fitted on dev; held out: each half of dev with that of the other "
        "half. On a few hundred rows it is uncertain by some points."
    )
    return [Section("Calibration", note, [Table(head, rows, numeric=1)])] if rows else []


# ---- A task closer -------------------------------------------------------------------------------


def relations(report: Report, task: str) -> list[Section]:
    """Relation by relation; what the best run confuses; where it was surest and wrong."""
    tested = [name for name in report.of_task(task) if report.answers[name]]
    if not tested or report.tasks[task] != "relation":
        return []
    best = tested[0]
    # Runs tested on other rows (a view of them, another copy) would be compared with nothing.
    gold_of = {name: report.answers[name][0].gold for name in report.results if name in tested}
    answers = {
        name: report.answers[name] for name, gold in gold_of.items() if gold == gold_of[best]
    }
    bars = report.figure(f"{task}_relations")
    train = tables.train_counts([report.results[best]])
    figures.relations(tables.relation_f1(answers, train), bars)
    protocol = report.protocol(*answers)
    by_relation = Picture(
        bars,
        f"Bars: test F1 of each relation of {task}, the runs beside each other",
        f"Test F1 of each relation, one against the rest, mean over seeds. {protocol}",
    )
    note = "Test F1, one against the rest, and by the number of training rows; mean over seeds."
    note += averaged_over(gold_of[best], train)
    if others := [name for name in tested if name not in answers]:
        note += f" Tested on other rows, and left out: {', '.join(others)}."
    in_numbers = tables.relation_tables(report.results, answers)
    sections = [Section(f"Relations of {task}", note, in_numbers, [by_relation])]
    matrix = report.figure(f"{task}_confusion")
    gold, predicted = (
        [label for seed in answers[best] for label in getattr(seed, side)]
        for side in ("gold", "answers")
    )
    figures.confusion(gold, predicted, matrix)
    caption = f"{best}: test rows of each relation (all seeds), by what was predicted. {protocol}"
    alt = f"Confusion matrix of {best} on test of {task}"
    note = f"The run with the best dev F1, {best}."
    confused = Picture(matrix, alt, caption)
    sections.append(Section(f"What is confused in {task}", note, [], [confused]))
    if hard := galleries.hardest(report.runs[best], report.results[best]):
        wrong = report.figure(f"{task}_cases")
        galleries.cases(hard, wrong)
        caption = f"Test rows where {best} (first seed) was surest and wrong. {protocol}"
        alt = "Wrong answers with their pictures: " + "; ".join(
            f"row {case.row}: said {case.predicted}, is {case.gold}" for case in hard
        )
        note = f"The surest wrong answers of {best}. Entities: [head], (tail)."
        surest = Picture(wrong, alt, caption)
        sections.append(Section(f"Hardest cases of {task}", note, [], [surest]))
    return sections


def averaged_over(gold: Sequence[str], train: Mapping[str, int]) -> str:
    """Over which relations macro and weighted F1 are averages: others, such as scikit-learn over
    all labels, count a relation without test rows as 0."""
    none = negative_class(train)
    absent = sorted(set(train) - {*gold, none})
    number = len(set(gold) - {none})
    note = f" Macro and weighted F1 are over the {number} relations that test rows have"
    return f"{note}; without a test row: {', '.join(absent)}." if absent else f"{note}."


def published(report: Report, task: str) -> list[Section]:
    """Beside what papers report."""
    if (table := tables.published_table(task, report.results)) is None:
        return []
    note = "Their protocols and inputs differ, as the last column says."
    return [Section(f"Published on {task}", note, [table])]


def pretraining(report: Report, lines: Lines) -> list[Section]:
    """Losses and validation."""
    if not lines:
        return []
    path = report.figure("pretraining")
    figures.pretraining(lines, path)
    caption = "Losses and validation figures (percent) over steps, on the held-out shards."
    alt = "Lines: pre-training losses and validation figures over steps"
    return [Section("Pre-training", "", [], [Picture(path, alt, caption)])]
