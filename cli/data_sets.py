"""`videosafety data list|status|get`: which sets and tasks there are, what of them is here, and how to get the rest."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

app = typer.Typer(help="The data sets behind the tasks: what there is, what is here, and how to get the rest.", no_args_is_help=True)
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of the table.")]


@app.command("list")
def list_sets(as_json: AsJson = False) -> None:
    """Print every set with its tasks, source, licence and gate, and the sets that have no faithful task, with the reason."""
    from videosafety.lmms_eval_tasks.catalog import catalog, missing, row

    if as_json:
        print(json.dumps({"datasets": _datasets(), "tasks": [row(found, task) for found in catalog().values() for task in found.tasks]}))
        return
    table = Table(box=None, padding=(0, 1, 0, 0))
    for column in ("set and task", "rows", "metric", "shows", "status"):
        table.add_column(column, no_wrap=column != "shows", overflow="fold", justify="right" if column == "rows" else "left")
    reasons: list[str] = []
    for found in catalog().values():
        table.add_row(f"[bold]{escape(found.name)}[/]")
        for task in found.tasks:
            rows = "?" if task.rows is None else f"{task.rows:,}"
            table.add_row(*map(escape, (f"  {task.name}", rows, task.metric, task.modality.replace(" + ", "+"), task.status)))
        reasons += dict.fromkeys(f"{found.title}: {task.reason}." for task in found.tasks if task.reason)
    Console().print(table)
    Console().print("\nUnavailable:", style="bold")
    for reason in reasons:
        Console().print(reason, markup=False)
    Console().print("\nNot here:", style="bold")
    for entry in missing():
        instead = f" Nearest: {entry.instead}." if entry.instead else ""
        Console().print(f"{entry.title}: {entry.reason}{instead}", markup=False)
    Console().print("\nWhat is on this machine: videosafety data status. Source, revision, licence, gate: --json.", markup=False)


def _datasets() -> list[dict[str, Any]]:
    """Every set, and those that have no task: the same keys for both."""
    from videosafety.lmms_eval_tasks.catalog import catalog, missing

    sets = [
        {
            "name": found.name,
            "title": found.title,
            "paper": found.paper,
            "arxiv": found.arxiv,
            "source": found.source.page or found.source.kind,
            "revision": found.source.revision,
            "licence": found.licence,
            "gate": found.gate,
            "size_mb": found.size_mb,
            "status": found.status,
            "reason": None if found.status == "ready" else found.tasks[0].reason,
            "instead": None,
            "tasks": [task.name for task in found.tasks],
        }
        for found in catalog().values()
    ]
    unknown = dict.fromkeys(sets[0])
    return sets + [
        {
            **unknown,
            "name": entry.name,
            "title": entry.title,
            "status": "not implemented",
            "reason": entry.reason,
            "instead": entry.instead,
            "tasks": [],
        }
        for entry in missing()
    ]


@app.command()
def status(
    name: Annotated[str | None, typer.Argument(help="One set; all where it is left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """Say what of the sets is on this machine, what is missing, and the next command. Exit status 1 where the one named is not usable."""
    from videosafety.lmms_eval_tasks import fetch
    from videosafety.lmms_eval_tasks.catalog import catalog

    found = [fetch.status(one) for one in ([name] if name else catalog())]
    if as_json:
        facts = [
            {"name": s.name, "state": s.state, "folder": str(s.folder), "missing": s.missing, "revision": s.revision, "next": s.advice}
            for s in found
        ]
        print(json.dumps({"datasets": facts}))
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("set", "", "where, or what to do"):
            table.add_column(column, overflow="fold")
        for s in found:
            if s.state == "ships":
                said = "nothing to fetch"
            elif s.usable:
                said = f"{s.folder}" + (f", commit {s.revision[:12]}" if s.revision else "")
            else:
                said = (f"{s.folder} lacks {', '.join(s.missing)}: " if s.missing else "") + s.advice
            colour = {"partial": "red", "absent": "yellow"}.get(s.state, "green")
            table.add_row(escape(s.name), f"[{colour}]{s.state}[/]", escape(said))
        Console().print(table)
    raise typer.Exit(int(name is not None and not found[0].usable))


@app.command()
def get(name: Annotated[str, typer.Argument(help="The set, as `videosafety data list` names it.")]) -> None:
    """Fetch a set, check it and print where it lies. Run again after an interruption: it goes on where it stopped."""
    from videosafety.lmms_eval_tasks import fetch

    folder = fetch.get(name)
    here = fetch.status(name)
    print(f"{name} ships with the package: there is nothing to fetch" if here.state == "ships" else folder)
