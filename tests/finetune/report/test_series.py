"""Which runs are points of one line, and where published figures stand."""

from finetune.report import published, sections, series, tables


def result(fraction=1.0, f1=50.0, views=(), **more):
    """What `result.json` says, as far as series read it."""
    config = {"fraction": fraction, "architecture": None, "init": "runs/pretrain/model"} | more
    return {
        "task": "mnre", "method": "promu", "images": "required", "views": list(views),
        "dev": None, "test": {"f1": {"mean": f1, "sd": None}}, "provenance": {"config": config},
    }  # fmt: skip


def test_series_of_shares_and_of_noise_by_hand():
    shares = {"all": result(1.0, 80), "tenth": result(0.1, 40), "again": result(0.1, 42)}
    (found,) = series.few_labels(shares)
    line = "promu, from pretrain/model"
    assert found["columns"] == ["10 %", "100 %"] and found["axis"] == [10, 100]
    assert found["runs"] == {
        line: {"100 %": (80, None), "10 %": (40, None)},
        f"{line}, again": {"10 %": (42, None)},
    }
    assert series.few_labels({"all": result()}) == []

    def noisy(ratio, f1, split="test"):
        params = {"ratio": ratio, "unit": "row"}
        return result(1.0, f1, [{"tool": "align-noise", "params": params, "split": split}])

    runs = {"clean": result(1.0, 80), "a": noisy(0.5, 60), "b": noisy(0.05, 75)}
    (found,) = series.strengths(runs)
    assert found["columns"] == ["none", "5 %", "50 %"] and found["axis"] == [0, 5, 50]
    assert found["runs"] == {line: {"none": (80, None), "5 %": (75, None), "50 %": (60, None)}}
    assert series.strengths({"clean": result(), "a": noisy(0.5, 60)}) == []
    tenth = result(0.1, 30)  # fewer labels: no point of that curve
    (again,) = series.strengths(runs | {"tenth": tenth})
    assert again == found
    (few,) = series.strengths(runs | {"tenth": tenth, "noisy tenth": noisy_tenth(0.5)})
    assert few["runs"] == found["runs"] | {
        f"{line}, 10 % of train": {"50 %": (20, None), "none": (30, None)}
    }
    (twice,) = series.strengths(runs | {"more seeds": result(1.0, 70)})
    assert twice["runs"] == found["runs"] | {f"{line}, more seeds": {"none": (70, None)}}


def noisy_tenth(ratio):
    """A tenth of the labels under a view."""
    params = {"ratio": ratio, "unit": "row"}
    return result(0.1, 20, [{"tool": "align-noise", "params": params, "split": "test"}])


def test_runs_of_other_settings_are_no_line():
    """Which runs belong together is what their configurations say, but for how long they train."""
    line = "promu, from pretrain/model"

    def run(fraction, f1, epochs=4, **more):
        optim = {"lr": 1e-4, "epochs": epochs, "evaluate_every": epochs}
        return result(fraction, f1, optim=optim, seeds=epochs, **more)

    newer = {"types": None, "bootstrap": False, "engine": {"precision": "auto"}}  # its defaults
    same = {"all": run(1.0, 80), "tenth": run(0.1, 40, epochs=9, **newer)}
    (found,) = series.few_labels(same)
    assert found["runs"] == {line: {"100 %": (80, None), "10 %": (40, None)}}
    other = {
        "all": run(1.0, 80, model={"gate": "dim"}, captions="caption"),
        "blip": run(1.0, 82, model={"gate": "dim"}, captions="BLIP"),
        "none": run(0.1, 40, model={"gate": "none"}, captions="caption"),
        "tenth": run(0.1, 50, model={"gate": "dim"}, captions="caption"),
    }
    (found,) = series.few_labels(other)
    assert found["runs"] == {
        f"{line}, all": {"100 %": (80, None), "10 %": (50, None)},
        f"{line}, blip": {"100 %": (82, None)},
        f"{line}, none": {"10 %": (40, None)},
    }
    table = tables.fraction_table(other)
    assert [row[1:] for row in table.rows] == [["50.00", "80.00"], ["–", "82.00"], ["40.00", "–"]]


def test_our_rows_stand_above_the_published_ones():
    seed = {"train_rows": 12_247}
    scores = {name: {"mean": 50.0, "sd": None} for name in ("precision", "recall", "f1")}
    run = result() | {"per_seed": [seed], "test": scores, "leaky": False}
    table = tables.published_table("mnre", {"mine": run})
    assert table.rows[0] == ["promu", "50.00", "50.00", "50.00", "this report, mine", "picture"]
    assert len(table.rows) == 1 + sum(entry.task == "mnre" for entry in published.FIGURES)
    assert tables.published_table("mnre", {"mine": run | {"per_seed": [{"train_rows": 9}]}}) is None


def test_tasks_share_no_table_of_few_labels(tmp_path):
    """Each has its own, with its own shares; a single one keeps the short title."""
    named = {"all": result(1.0, 80), "tenth": result(0.1, 40)}
    other = {f"ner {name}": {**found, "task": "twitter2017"} for name, found in named.items()}
    for found in (*named.values(), *other.values()):
        found |= {"dev": found["test"], "per_seed": [{}], "leaky": False}
        found["provenance"]["kind"] = "relation"
    other["ner half"] = {**other["ner all"], "provenance": result(0.5, 0)["provenance"]}
    other["ner half"]["provenance"]["kind"] = "entity"
    both = sections.Report({}, named | other, {}, tmp_path / "r.md")
    first, second = sections.few_labels(both)
    assert (first.title, second.title) == ("Few labels of mnre", "Few labels of twitter2017")
    assert [len(s.tables[0].head) for s in (first, second)] == [3, 4]
    assert (tmp_path / "r_twitter2017_few_labels.png").is_file()
    (alone,) = sections.few_labels(sections.Report({}, named, {}, tmp_path / "r.md"))
    assert alone.title == "Few labels" and (tmp_path / "r_few_labels.png").is_file()
