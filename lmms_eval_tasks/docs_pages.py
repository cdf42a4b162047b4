"""The documentation of the benchmarks, made from every dataset.yml and README: `make docs` writes docs/benchmarks.md and a page a set."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable
from pathlib import Path

from videosafety.lmms_eval_tasks.catalog import FOLDER, DataSet, Task, catalog, missing

MADE = "<!-- Made by `make docs` from dataset.yml and README.md of each folder in lmms_eval_tasks: change those. -->\n\n"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#|/)([^)\s]+)")  # the target of a relative Markdown link


def pages() -> dict[str, str]:
    """Every page: its path below docs/ -> its text."""
    return {"benchmarks.md": overview(), **{f"benchmarks/{found.name}.md": page(found) for found in catalog().values()}}


def write(docs: Path) -> None:
    """Write all pages below `docs`, and remove those of sets that are no more."""
    made = pages()
    for old in (docs / "benchmarks").glob("*.md"):
        if f"benchmarks/{old.name}" not in made:
            old.unlink()
    for name, text in made.items():
        (docs / name).parent.mkdir(parents=True, exist_ok=True)
        (docs / name).write_text(text, encoding="utf-8")


def overview() -> str:
    """The comparison table, and what is not here."""
    columns = ("set", "what it measures", "shows", "cells", "n", "first metric", "judge", "gate", "licence", "status")
    rows = []
    for found in catalog().values():
        tasks = found.tasks
        rows.append(
            (
                f"[{found.title}](benchmarks/{found.name}.md)",
                found.about,
                _each(task.modality for task in tasks),
                _each(task.cell for task in tasks),
                _numbers(tasks),
                _each(f"`{task.metric}`" for task in tasks),
                _each(task.judge for task in tasks),
                found.gate or "open",
                found.licence,
                found.status if found.status == "ready" else f"{found.status}: {tasks[0].reason}",
            )
        )
    absent = [(entry.title, entry.reason, f"`{entry.instead}`" if entry.instead else "–") for entry in missing()]
    ready = sum(task.status == "ready" for found in catalog().values() for task in found.tasks)
    total = sum(len(found.tasks) for found in catalog().values())
    return f"""{MADE}# Benchmarks

{len(rows)} sets, {total} tasks, of which {ready} run on data that can be had. `n`: rows of a task, `?` where no source tells. Every rate
comes with its n and interval; what could not be scored is counted apart. Figures of others are on each page, marked as theirs.

{table(columns, rows)}
`videosafety data list --json` prints the same facts, `videosafety data status` what is on a machine; `videosafety data get NAME` fetches a
set once, verifies it, and says what to do where it is gated. Tasks fetch open sets by themselves.

## Not here

{table(("set", "why", "nearest"), absent)}"""


def page(found: DataSet) -> str:
    """One set: about, data and how to get it, tasks, reference figures, and the folder's README with what is parity and what is ours."""
    source = found.source
    paper = found.paper + (f" ([arXiv {found.arxiv}](https://arxiv.org/abs/{found.arxiv}))" if found.arxiv else "")
    kinds = {"own": "ships with the package", "none": "cannot be fetched"}
    where = f"[{source.id}]({source.page})" if source.page else kinds[source.kind]
    revision = source.revision or ("the commit that is fetched is recorded and kept" if source.page else "–")
    facts = [
        ("paper", paper),
        ("source", where),
        ("revision", revision),
        ("licence", found.licence),
        ("gate", found.gate or "open"),
        ("size", "not known" if found.size_mb is None else f"{found.size_mb:,g} MB") if source.page else ("size", "–"),
    ]
    tasks = [
        (
            f"`{t.name}`",
            t.cell,
            t.modality,
            "?" if t.rows is None else f"{t.rows:,}",
            f"`{t.metric}`",
            t.judge,
            t.status + (f": {t.reason}" if t.reason else ""),
        )
        for t in found.tasks
    ]
    reference = [(f"`{r.task}`", r.model, r.metric, f"{r.value:g}", r.source, r.note) for r in found.reference]
    theirs = table(("task", "model", "their metric", "figure", "source", "note"), reference) if reference else "None is known.\n"
    return f"""{MADE}# {found.title}

{found.about}

{table(("", ""), facts)}
## Get the data

{_how(found)}
## Tasks

{table(("task", "harm", "shows", "n", "first metric", "judge", "status"), tasks)}
## Figures of others

Theirs, in their metric and by their judge; not ours, and not comparable unless the README below says so.

{theirs}
## README of the folder

{_readme(found.name)}"""


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table, with a line end."""
    lines = [tuple(columns)]
    lines += [tuple("---" for _ in lines[0]), *map(tuple, rows)]
    return "".join("| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _how(found: DataSet) -> str:
    source, note = found.source, f"\n{found.note}\n" if found.note else ""
    if source.kind == "own":
        return f"Nothing to do.\n{note}"
    layout = "".join(f"- `{pattern}`\n" for pattern in found.layout)
    holds = f"A copy of your own goes into `VIDEOSAFETY_DATA_DIR/{found.name}`, which must hold\n\n{layout}"
    if source.kind == "none":
        return f"{(found.gate or 'It cannot be fetched').capitalize()}. {holds}{note}"
    gate = f"{found.way_in[0].upper()}{found.way_in[1:]}run\n\n" if found.way_in else ""
    return f"{gate}```\nvideosafety data get {found.name}\n```\n\n{holds}{note}"


def _readme(name: str) -> str:
    """The folder's README below this page's heading: its own title off, its headings one level down, its links from here."""
    text = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    body = re.sub(r"\A# .*\n+", "", text)
    body = re.sub(r"(?m)^(#+ )", r"#\1", body)
    return LINK.sub(lambda link: posixpath.normpath(f"../../lmms_eval_tasks/{name}/{link[1]}"), body)


def _each(values: Iterable[str]) -> str:
    """Each value once, in order."""
    return "; ".join(dict.fromkeys(values))


def _numbers(tasks: tuple[Task, ...]) -> str:
    return ", ".join(dict.fromkeys("?" if task.rows is None else f"{task.rows:,}" for task in tasks))


if __name__ == "__main__":
    write(Path(sys.argv[1]))
