"""A study's file, and the cells of its tables: which settings and which view each one has."""

import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shards.files import InputError
from shards.options import check_bounds, near

STUDIES = Path(__file__).parents[1] / "configs" / "studies"
OWN_KEYS = {"settings", "runs", "tables", "small", "pretrain"}
VIEW_KEYS = {"only", "settings"}
"""What a column may say beside the options of its view."""


@dataclass(frozen=True)
class Cell:
    """One run under one view."""

    table: str
    run: str
    column: str
    settings: Mapping[str, Any]
    """`key: value` as on the command line of `finetune train`."""
    view: Mapping[str, Any]
    """Options of `finetune view`; empty: none."""
    own_training: bool
    """Whether this column is trained for itself, or read off the run's plain training."""

    @property
    def name(self) -> str:
        """Folder of the training that this cell needs."""
        return folder_name(self.run, self.column if self.own_training else "")

    @property
    def view_name(self) -> str:
        """Of the manifests that this cell needs."""
        return folder_name(*(str(v) for key, v in self.view.items() if key != "regions"))


def folder_name(*parts: str) -> str:
    """Words with dashes between them."""
    plain = (
        "".join(c if c.isalnum() or c in ".+" else " " for c in part) for part in parts if part
    )
    return "--".join("-".join(words.split()) for words in plain)


def read_study(name: str) -> dict[str, Any]:
    """A study by its name or its path.

    Raises:
        InputError: no such file, or what is in it is no study.
    """
    shipped = {path.stem: path for path in sorted(STUDIES.glob("*.yaml"))}
    key = name.removeprefix("finetune/configs/studies/").removesuffix(".yaml")
    if not Path(name).is_file() and key not in shipped:
        raise InputError(f"study {name}: no such file{near(key, shipped)}")
    path = Path(name) if Path(name).is_file() else shipped[key]
    check_bounds(path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not {"runs", "tables"} <= content.keys() <= OWN_KEYS:
        raise InputError(
            f"{path}: expected runs and tables; settings, small and pretrain may be there, too"
        )
    for key in content:
        content[key] = mapping(content[key], f"{path}: {key}")
        if key in ("runs", "tables", "pretrain"):
            content[key] = named_mappings(content[key], f"{path}: {key}")
    for run, settings in content["runs"].items():
        settings["small"] = mapping(settings.get("small"), f"{path}: runs: {run}: small")
    for title, columns in content["tables"].items():
        where = f"{path}: tables: {title}"
        content["tables"][title] = columns = named_mappings(columns, where)
        for column, described in columns.items():
            described["settings"] = mapping(
                described.get("settings"), f"{where}: {column}: settings"
            )
            if not isinstance(described.get("only", []), list):
                raise InputError(f"{where}: {column}: only: expected a list of runs")
    return content


def mapping(value: Any, where: str) -> dict[str, Any]:
    """A copy of it; nothing at all is an empty one.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, dict | None):
        raise InputError(f"{where}: expected a mapping")
    return {str(key): inner for key, inner in (value or {}).items()}


def named_mappings(values: Mapping[str, Any], where: str) -> dict[str, dict[str, Any]]:
    """A `mapping` each."""
    return {name: mapping(value, f"{where}: {name}") for name, value in values.items()}


def cells(
    content: Mapping[str, Any], small: bool, places: Mapping[str, str], columns: Sequence[str] = ()
) -> Iterator[Cell]:
    """Every cell of every table, in order; of some `columns` alone where any are named.

    Raises:
        InputError: what is in it is no study; two trainings would have one folder.
    """
    all_columns = [str(name) for table in content["tables"].values() for name in table]
    if unknown := set(columns) - set(all_columns):
        raise InputError(
            f"--columns {min(unknown)}: the study's columns are {', '.join(all_columns)}"
        )
    places = {"configs": "sample" if small else "mnre"} | dict(places)
    trainings: dict[str, tuple] = {}
    views: dict[tuple[str, bool], tuple] = {}
    common = content.get("settings", {}) | (content.get("small", {}) if small else {})
    for table, described_columns in content["tables"].items():
        for column, described in described_columns.items():
            if columns and str(column) not in columns:
                continue
            described = filled(described, places)
            only = [str(run) for run in described.get("only", content["runs"])]
            if unknown := set(only) - content["runs"].keys():
                raise InputError(f"table {table}: only: no run called {sorted(unknown)[0]!r}")
            view = {key: described[key] for key in described if key not in VIEW_KEYS}
            changed = described["settings"]
            # A view of the test rows alone is laid over the weights of the plain training.
            own_training = bool(changed) or (bool(view) and not shown_at_test(view))
            for run in only:
                own = content["runs"][run]
                own = {key: own[key] for key in own if key != "small"} | (
                    own.get("small", {}) if small else {}
                )
                settings = filled(common | own, places) | changed
                if view and "data" in settings:
                    raise InputError(f"table {table}: {column}: views are of the rows of --data")
                cell = Cell(table, run, str(column), settings, view, own_training)
                asked = {key.replace("-", "_"): value for key, value in view.items()}
                asked_of = asked, settings.get("task")
                if view and views.setdefault((cell.view_name, own_training), asked_of) != asked_of:
                    raise InputError(
                        f"table {table}: {column}: another view has its file, {cell.view_name}, "
                        "already; give one of the two a study, and an --out, of its own"
                    )
                # Names that differ in punctuation alone have one folder: said now, not after hours.
                training = settings, view if own_training else {}
                if trainings.setdefault(cell.name, training) != training:
                    raise InputError(
                        f"table {table}: {run}, {column}: another training has its folder, "
                        f"{cell.name}, already; rename the run or the column"
                    )
                yield cell


def shown_at_test(view: Mapping[str, Any]) -> bool:
    """Whether a view changes the test rows alone."""
    from finetune.data.views import TOOLS, default_scope

    if view.get("tool") not in TOOLS:
        raise InputError(f"study: no view tool {view.get('tool')!r}; there are {', '.join(TOOLS)}")
    return view.get("scope", default_scope(view["tool"])) == "test"


def filled(values: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """With `$model` and the like replaced."""

    def fill(value: Any) -> Any:
        if isinstance(value, dict):
            return filled(value, places)
        if not isinstance(value, str):
            return value
        try:
            return string.Template(value).substitute(places)
        except KeyError as error:
            raise InputError(f"study: {value} wants --{error.args[0]}") from None
        except ValueError:
            raise InputError(f"study: {value}: a $ without a name; $$ is the character") from None

    return {key: fill(value) for key, value in values.items()}
