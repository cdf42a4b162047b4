"""`videosafety judge-cache list|prune`: what is stored of which judge, and how to be rid of it."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(help="The verdicts of remote judges that are kept on disk.", no_args_is_help=True)


@app.command("list")
def list_verdicts(as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of the table.")] = False) -> None:
    """Print how many verdicts of each judge are stored, their size, and when the first and the last were given."""
    from videosafety.lmms_eval_tasks.judge.cache import cache_path, judge_cache

    entries = judge_cache().list()
    if as_json:
        print(json.dumps([asdict(entry) for entry in entries]))
        return
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("judge", "verdicts", "KiB", "first", "last"):
        table.add_column(column, overflow="fold", justify="right" if column in ("verdicts", "KiB") else "left")
    for entry in entries:
        days = (time.strftime("%Y-%m-%d", time.localtime(moment)) for moment in (entry.first, entry.last))
        table.add_row(entry.judge, str(entry.n), f"{entry.bytes / 1024:.1f}", *days)
    Console().print(table if entries else "no verdicts are stored", markup=False)
    Console().print(str(cache_path()), markup=False, soft_wrap=True)


@app.command()
def prune(
    older_than_days: Annotated[float | None, typer.Option(help="Remove verdicts given more than so many days ago; 0: all.")] = None,
    judge: Annotated[str | None, typer.Option(help="Remove verdicts of this judge only, as `list` names it.")] = None,
) -> None:
    """Remove stored verdicts that meet all conditions given. The next run asks for them again."""
    from videosafety.lmms_eval_tasks.judge.cache import judge_cache

    try:
        removed = judge_cache().prune(older_than_days=older_than_days, judge=judge)
    except ValueError as error:
        Console(stderr=True).print(f"videosafety: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    print(f"{removed} verdicts removed")
