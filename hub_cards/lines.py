"""Figures as they are published: one line a figure, with n, interval, bounds and all that it rests on; null stays null."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, get_args, get_type_hints
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import pyarrow

from videosafety.hub_cards.upload import PublishError
from videosafety.lmms_eval_tasks.catalog import catalog
from videosafety.lmms_eval_tasks.judge.redact import redact
from videosafety.lmms_eval_tasks.metrics import Rate
from videosafety.lmms_eval_tasks.report import summary
from videosafety.lmms_eval_tasks.report.board import Board, Cell, Column, Row, board, judges_of, model_key
from videosafety.lmms_eval_tasks.report.load import Run
from videosafety.lmms_eval_tasks.report.repeat import DEFAULTS, command, scrub
from videosafety.lmms_eval_tasks.report.sets import set_of

TASK, CATEGORY, BOARD, TWINS = "task", "category", "board", "twins"  # the scopes of a line
LABEL = re.compile(r"\A(?:[A-Z]|R\d+) ")  # the letter of a run, which a published line does not have
ABSOLUTE = re.compile(r"(?<![\w:/.])(?:~|[A-Za-z]:)?(?:/[\w.@+-]+){2,}/?")  # a path of somebody's machine; not the path of an address


@dataclass(frozen=True, slots=True)
class Line:
    """One figure of one model.

    scope: `task`; `category` of one task or of tasks taken together; `board`, a cell of the leaderboard; `twins`, one of the board of
    text-only and prompted tasks. `name` is the task, the tasks taken together, or the group of that column; `tasks` all it is over.
    value, low, high (95 % interval), bound_low, bound_high (what the unscored rows could make of it) are shares; None where there is none.
    Facts that a run did not record are None. `note` says why a figure is not comparable with its column.
    """

    entry: str  # equal for lines that make one row of the leaderboard: the same model with the same arguments and judge
    model: str
    revision: str | None
    judge: str
    scope: str
    dataset: str  # the set's name here, such as vsb
    dataset_title: str
    name: str
    tasks: str
    category: str | None
    metric: str
    higher_is_better: bool
    value: float | None
    low: float | None
    high: float | None
    bound_low: float | None
    bound_high: float | None
    n: int
    n_scored: int
    data_name: str | None  # as the run named it
    data_version: str | None
    data_hash: str | None
    data_revision: str | None
    data_hub: str | None  # ORG/NAME of the copy on the Hub that was read
    policy: str | None
    policy_hash: str | None
    task_version: str | None
    lmms_eval: str | None
    videosafety: str | None
    limit: str | None  # --limit of a partial run
    date: str | None  # ISO 8601
    command: str
    note: str | None = None
    source: str | None = None  # address of the verdicts behind the figure, where they are published

    @property
    def rate(self) -> Rate:
        return Rate(self.n, self.n_scored, self.value, self.low, self.high, self.bound_low, self.bound_high)

    @property
    def figure(self) -> float | None:
        """The value where it may be printed as a figure: enough rows were scored. Else None."""
        return self.value if summary.printable(self.rate) else None

    @property
    def judged_by(self) -> str:
        return self.judge or "rules"


def public(text: str, replace: tuple[str, str] | None = None) -> str:
    """Text without secrets and without the paths of a machine, of which the last part stays. `replace`: first (this, by that)."""
    if replace and replace[0] != replace[1]:
        text = text.replace(*replace)
    return ABSOLUTE.sub(lambda path: PurePosixPath(path[0]).name, redact(scrub(text)))


def public_name(model: str) -> str:
    """A model's name: a Hub id as it is, of a folder its last part."""
    path = PurePosixPath(public(model).replace("\\", "/"))
    return str(path) if len(path.parts) <= 2 and ".." not in path.parts else path.name


def public_command(run: Run, name: str) -> str:
    """The command that made a run, for a model that is called `name`; where results go is left out."""
    lines = command(run).split(" \\\n")
    kept = [line for line in lines if not line.strip().startswith(("--output_path", "--log_samples_suffix"))]
    return " \\\n".join(public(line, (run.model, name)) for line in kept)


def task_lines(run: Run, name: str) -> list[Line]:
    """The main figure of every task of a run, in the report's order; the model is called `name`."""
    lines = []
    for task in summary.names_in_order([run]):
        found = run.tasks[task]
        lines.append(_line(run, name, TASK, task, (task,), found.metric, found.higher, found.rate))
    return lines


def category_lines(run: Run, name: str, runs: Sequence[Run]) -> list[Line]:
    """DSR by category: of the harmful cells of a set together, of other tasks alone, as the report shows them."""
    lines = []
    for scope in summary.scopes(runs):
        tasks = tuple(task for task in scope.tasks if task in run.tasks)
        for category, rate in sorted(summary.rates_by(run, tasks, "category").items()):
            lines.append(_line(run, name, CATEGORY, scope.title, tasks, "dsr", True, rate, category))
    return lines


def board_lines(runs: Sequence[Run], twins: bool = False) -> list[Line]:
    """The cells of the leaderboard over these runs."""
    made = board(runs, twins)
    lines = []
    for row in made.rows:
        for column, cell in zip(made.columns, row.cells, strict=True):
            if cell is None:
                continue
            holder = next(runs[i] for i in row.runs if any(task in runs[i].tasks for task in column.tasks))
            tasks = tuple(task for task in column.tasks if any(task in runs[i].tasks for i in row.runs))
            note = public(LABEL.sub("", made.notes[cell.mark - 1])) if cell.mark else None
            name = public_name(row.model)
            lines.append(
                _line(holder, name, TWINS if twins else BOARD, column.name, tasks, column.metric, column.higher, cell.rate, None, note)
            )
    return lines


def _line(
    run: Run,
    model: str,
    scope: str,
    name: str,
    tasks: tuple[str, ...],
    metric: str,
    higher: bool,
    rate: Rate,
    category: str | None = None,
    note: str | None = None,
) -> Line:
    first = next(task for task in tasks if task in run.tasks)
    owner, settings = set_of(first), run.settings
    noted = settings.get("data") or {}
    body: dict[str, Any] = found if isinstance(found := noted.get(owner), dict) else {}
    policy, versions = settings.get("policy") or {}, settings.get("versions") or {}
    limit = run.config.get("limit")
    hub, _, commit = str(body.get("hub") or "").partition("@")
    known = catalog().get(owner)
    judges = {judge for task in tasks if task in run.tasks for judge in judges_of(run, task)} - {"rule"}
    return Line(
        entry=hashlib.sha256(model_key(run).encode()).hexdigest()[:8],
        model=model,
        revision=_word((settings.get("model") or {}).get("commit") or (settings.get("model") or {}).get("revision")),
        judge=public(", ".join(sorted(judges))),
        scope=scope,
        dataset=owner,
        dataset_title=known.title if known else owner,
        name=name,
        tasks=",".join(tasks),
        category=category,
        metric=metric,
        higher_is_better=higher,
        value=rate.value,
        low=rate.low,
        high=rate.high,
        bound_low=rate.bound_low,
        bound_high=rate.bound_high,
        n=rate.n,
        n_scored=rate.n_scored,
        data_name=_word(body.get("name")),
        data_version=_word(body.get("version")),
        data_hash=_word(body.get("hash")),
        data_revision=_word(body.get("revision")) or commit or None,
        data_hub=hub or (known.source.id if known and known.source.kind == "hub" and body.get("revision") else None),
        policy=_word(policy.get("version")),
        policy_hash=_word(policy.get("hash")),
        task_version=_word((run.raw.get("versions") or {}).get(first)),
        lmms_eval=_word(versions.get("lmms_eval") or run.raw.get("lmms_eval_version")),
        videosafety=_word(versions.get("videosafety")),
        limit=None if limit in (None, -1) else str(limit),
        date=_date(run),
        command=public_command(run, model),
        note=note,
    )


def _word(value: Any) -> str | None:
    return None if value in (None, "") else public(str(value))


def _date(run: Run) -> str | None:
    """When a run was made, with its zone: lmms-eval writes local time of the zone that it was told."""
    zone = (run.config.get("resolved_cli_args") or {}).get("timezone") or DEFAULTS["timezone"]
    try:
        return datetime.strptime(run.date, "%Y%m%d_%H%M%S").replace(tzinfo=ZoneInfo(str(zone))).isoformat()
    except (ValueError, ZoneInfoNotFoundError):
        return None


# --- as a table, and back ---------------------------------------------------------------------------------------------------------------

KINDS = {str: pyarrow.string(), float: pyarrow.float64(), int: pyarrow.int64(), bool: pyarrow.bool_()}


def schema() -> pyarrow.Schema:
    """The columns of results.parquet."""
    hints = get_type_hints(Line)
    kinds = {one.name: next(kind for kind in (*get_args(hints[one.name]), hints[one.name]) if kind in KINDS) for one in fields(Line)}
    return pyarrow.schema([(name, KINDS[kind]) for name, kind in kinds.items()])


def to_table(lines: Iterable[Line]) -> pyarrow.Table:
    return pyarrow.Table.from_pylist([asdict(line) for line in lines], schema=schema())


def from_rows(rows: Iterable[dict[str, Any]], where: str) -> list[Line]:
    """Lines from the rows of a file. Raises PublishError, naming `where`, for rows of another layout."""
    names = {one.name for one in fields(Line)}
    found = []
    for row in rows:
        if not isinstance(row, dict) or set(row) != names:
            raise PublishError(f"{where} was written by another version of videosafety: remove it, and publish all results again")
        found.append(Line(**row))
    return found


def read_table(file: Path) -> list[Line]:
    """The lines of a results.parquet. Raises PublishError where it is none."""
    import pyarrow.parquet

    try:
        return from_rows(pyarrow.parquet.read_table(file).to_pylist(), str(file))
    except (pyarrow.ArrowException, OSError) as error:
        raise PublishError(f"{file} is no results.parquet ({error})") from error


def as_board(lines: Sequence[Line], scope: str = BOARD) -> Board:
    """The leaderboard again, from its lines: rows are models with their judge, in the order in which they come."""
    cells = [line for line in lines if line.scope == scope]
    columns: dict[tuple[str, str, str], Column] = {}
    for line in cells:
        tasks = tuple(line.tasks.split(","))
        columns.setdefault(_column(line), Column(line.dataset_title, line.name, line.metric, line.higher_is_better, tasks, scope == TWINS))
    blocks = list(dict.fromkeys(key[:2] for key in columns))
    order = sorted(columns, key=lambda key: (blocks.index(key[:2]), summary.metric_rank(key[2])))
    notes = list(dict.fromkeys(line.note for line in cells if line.note))
    rows = []
    for place, entry in enumerate(entries(lines)):
        mine = {_column(line): line for line in cells if line.entry == entry}
        if mine:
            found = [mine.get(key) for key in order]
            shown = tuple(Cell(one.rate, notes.index(one.note) + 1 if one.note else 0) if one else None for one in found)
            judges = tuple(sorted({line.judge for line in mine.values() if line.judge}))
            rows.append(Row(next(iter(mine.values())).model, (place,), judges, shown))
    return Board(tuple(columns[key] for key in order), tuple(rows), tuple(notes))


def _column(line: Line) -> tuple[str, str, str]:
    return line.dataset, line.name, line.metric


def entries(lines: Iterable[Line]) -> list[str]:
    """The entries of the leaderboard in their order: each is one row, and has one letter and colour."""
    return list(dict.fromkeys(line.entry for line in lines))
