"""The paper's table over any number of runs: models by rows, question sets and prompts by columns."""
from dataclasses import dataclass, field
from pathlib import Path

from redlite.errors import Error
from redlite.redteam import compare, runs, scorecard
from redlite.redteam.gates import main_names
from redlite.store.text import percent, points

FORMATS = ("text", "markdown", "csv")


@dataclass
class Row:
    """A model and what its runs measured.

    cells        column ("dangerousqa: cou", "mmlu.acc") → value, ci95, n (labelled), and the run it is from
    differences  column → difference to the first row, ci95, p and n, paired by question or example
    notes        why a column has no difference
    """
    name: str
    model: object
    cells: dict[str, dict] = field(default_factory=dict)
    differences: dict[str, dict] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def rows_of(folders: list[str], seed: int = 0) -> list[Row]:
    """A row for each model. Runs of one model share its row where they fill other columns of it.

    seed  of the bootstrap
    Raises Error for a directory that is no run.
    """
    rows: list[Row] = []
    for folder in folders:
        asr, bench = runs.counted(runs.parts_of(folder))
        found = scorecard.measures(asr, bench)
        made = runs.read_manifest(next(iter(runs.parts_of(folder).values())))
        cells = {_column(name, asr): {**found[name], "measure": name, "run": folder}
                 for name in main_names(found)}
        same = [row for row in rows if row.model == made["model"] and not set(row.cells) & set(cells)]
        row = next(iter(same), None)
        if row is None:
            row = Row((asr or bench or {})["model"], made["model"])
            rows.append(row)
        row.cells.update(cells)
    _tell_apart(rows)
    for row in rows[1:]:
        _pair(rows[0], row, seed)
    return rows


def _column(name: str, asr: dict | None) -> str:
    lead, _, prompt = name.partition(".")
    return f"{asr['questions']['name']}: {prompt}" if asr and lead == "asr" else name


def _tell_apart(rows: list[Row]) -> None:
    """Rows of one name are called by their runs as well."""
    names = [row.name for row in rows]
    for row, name in zip(rows, names, strict=True):
        if names.count(name) > 1:
            folders = dict.fromkeys(str(cell["run"]) for cell in row.cells.values())
            row.name = f"{name} ({', '.join(folders)})"


def _pair(first: Row, row: Row, seed: int) -> None:
    """Fill in a row's differences to the first."""
    pairs: dict[tuple[str, str], dict[str, dict]] = {}
    for column, cell in row.cells.items():
        if column not in first.cells:
            continue
        pair = first.cells[column]["run"], cell["run"]
        if pair not in pairs:
            try:
                pairs[pair] = scorecard.paired_differences(Path(pair[1]), Path(pair[0]), seed, alike=False)
            except Error as error:
                way = f": redeval compare {' '.join(pair)} --anyway" if error.setting == "anyway" else ""
                row.notes.append(f"{row.name}: no difference to {first.name}: {error}{way}")
                pairs[pair] = {}
        found = pairs[pair].get(cell["measure"])
        if found and found["difference"] is not None:
            row.differences[column] = {name: found[name] for name in ("difference", "ci95", "p", "n")}


def table(rows: list[Row]) -> list[list[str]]:
    """The rows as texts, with a head: every value with its interval, and below it the difference."""
    columns = list(dict.fromkeys(column for row in rows for column in row.cells))
    out = [["model", *columns]]
    for row in rows:
        out.append([row.name, *(_value(row.cells.get(column)) for column in columns)])
    for row in rows[1:]:
        if row.differences:
            lead = f"{row.name} − {rows[0].name}"
            out.append([lead, *(_difference(row.differences.get(column)) for column in columns)])
    return out


def _value(cell: dict | None) -> str:
    if cell is None or cell["value"] is None:
        return "–"
    low, high = cell["ci95"]
    return f"{percent(cell['value'])} ({100 * low:.1f}–{100 * high:.1f})"


def _difference(found: dict | None) -> str:
    if found is None:
        return "–"
    low, high = found["ci95"]
    return f"{points(found['difference'])} ({points(low)} to {points(high)})"


def notes(rows: list[Row]) -> list[str]:
    """What a reader of the table must know."""
    said = ["Each value with its 95% interval; differences in points, paired by question or example."]
    return said + list(dict.fromkeys(note for row in rows for note in row.notes))


def unfinished(folders: list[str]) -> dict[str, dict[str, int]]:
    """Which runs lack results, and how many of what."""
    found = {}
    for folder in folders:
        for part in runs.parts_of(folder).values():
            if left := compare.read(part).unfinished:
                found[str(part)] = left
    return found
