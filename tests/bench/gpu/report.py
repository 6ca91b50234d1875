"""What the sections found, as Markdown."""


def markdown(report: dict) -> str:
    """The report of `run.py`, a heading a section and a table each of its own."""
    sections = report["sections"]
    checks = [row for part in sections.values() for row in part["tables"].get("checks", [])]
    failed = [row["check"] for row in checks if not row["passed"]]
    lines = [
        "# GPU pass",
        "",
        f"Device asked for: {report['device']}"
        + (" (a rehearsal at small sizes: its speeds mean nothing)" * (report["device"] == "cpu"))
        + f"; {report['minutes']:g} minutes. {len(checks) - len(failed)} of {len(checks)} checks "
        + "passed."
        + (f" **Failed: {'; '.join(failed)}.**" if failed else ""),
    ]
    for part in sections.values():
        lines += ["", f"## {part['title']}", "", f"{part['ended']}, {part['seconds']:.0f} s"]
        lines += [f"; {note}" for note in part.get("notes", [])]
        for name, rows in part["tables"].items():
            lines += ["", f"**{name}**", "", *table(rows)]
    return "\n".join(lines) + "\n"


def table(rows: list[dict]) -> list[str]:
    """Rows of the same meaning; a column for each key that any of them has."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    return head + [f"| {' | '.join(cell(row.get(key)) for key in columns)} |" for row in rows]


def cell(value: object) -> str:
    """A value in few digits."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "**NO**"
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return str(value).replace("|", "\\|").replace("\n", " ")
