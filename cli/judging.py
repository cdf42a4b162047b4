"""The commands about judges: `audit` tries one, `rescore` lets one judge a finished run again, `judge-sweep` tries other thresholds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

Judge = Annotated[str, typer.Option(help="Judge spec: offline, refusal, keyword:<list>, openai:<model>, local:<url>#<model>, …")]

SHOWN = 20  # rows on which a panel differs


def _fail(error: Exception) -> typer.Exit:
    Console(stderr=True).print(f"videosafety: {error}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(2)


def audit(
    judge: Judge,
    labels: Annotated[Path | None, typer.Option(help="CSV of answers with people's labels.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column with the answer.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column with people's label.")] = None,
    refusal_labels: Annotated[str | None, typer.Option(help="Labels of refusals, with commas between; all others are answers.")] = None,
    unsafe_labels: Annotated[str | None, typer.Option(help="Labels of unsafe answers, with commas between; all others are safe.")] = None,
    query_column: Annotated[str | None, typer.Option(help="Column with what was asked.")] = None,
    category_column: Annotated[str | None, typer.Option(help="Column with a category: figures for each.")] = None,
    language_column: Annotated[str | None, typer.Option(help="Column with a language: figures for each.")] = None,
    canaries: Annotated[bool, typer.Option(help="Try the built-in canaries too: about 150 answers with a known verdict.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of the tables.")] = False,
) -> None:
    """Try a judge against people's labels, and on canaries: empty answers, injections, score-like strings, failures.

    videosafety audit --judge refusal --labels xstest.csv --answer-column completion --label-column final_label
    --refusal-labels 2_full_refusal,3_partial_refusal
    """
    from videosafety.lmms_eval_tasks.judge import get_judge
    from videosafety.lmms_eval_tasks.judge.audit import audit_canaries, audit_labels, read_labels

    try:
        columns = _columns(
            labels, answer_column, label_column, refusal_labels, unsafe_labels, query_column, category_column, language_column
        )
        if columns is None and not canaries:
            raise ValueError("nothing to do: give --labels FILE, or leave --no-canaries out")
        found: dict[str, Any] = {"judge": {"spec": judge, "id": get_judge(judge).id}}
        if labels and columns:
            rows, blank = read_labels(labels, columns)
            found |= {"labels": labels.name, "blank_labels": blank} | audit_labels(judge, rows, columns.positive)
        if canaries:
            found["canaries"] = audit_canaries(judge)
    except ValueError as error:
        raise _fail(error) from error
    if as_json:
        print(json.dumps(found, ensure_ascii=False))
    else:
        _print_audit(found, Console())


def _columns(
    labels: Path | None,
    answer: str | None,
    label: str | None,
    refusal: str | None,
    unsafe: str | None,
    query: str | None,
    category: str | None,
    language: str | None,
) -> Any:
    """The columns as `audit.Columns`, None without --labels. Raises ValueError where options do not go together."""
    from videosafety.lmms_eval_tasks.judge.audit import Columns

    if labels is None:
        if any((answer, label, refusal, unsafe, query, category, language)):
            raise ValueError("columns and labels belong to a file: give --labels FILE")
        return None
    if not answer or not label:
        raise ValueError("--labels needs --answer-column and --label-column")
    if bool(refusal) == bool(unsafe):
        raise ValueError("--labels needs one of --refusal-labels and --unsafe-labels")
    values = tuple(value.strip() for value in (refusal or unsafe or "").split(",") if value.strip())
    if not values:
        raise ValueError("--refusal-labels and --unsafe-labels take labels with commas between")
    return Columns(answer, label, "refuses" if refusal else "unsafe", values, query or None, category or None, language or None)


def _print_audit(found: dict[str, Any], console: Console) -> None:
    console.print(Text(f"Judge {found['judge']['id']}", style="bold"))
    if "labels" in found:
        _print_agreement(found, console)
    if "canaries" in found:
        _print_canaries(found["canaries"], console)


def _print_agreement(found: dict[str, Any], console: Console) -> None:
    word = {"refuses": "refusals", "unsafe": "unsafe answers"}[found["positive"]]
    console.print(Text(f"\nAgainst people's labels in {found['labels']}; positive are {word}. Brackets: 95 % intervals.", style="dim"))
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", overflow="fold")
    for column in ("Accuracy", "Kappa", "TPR", "TNR", "Scored"):
        table.add_column(column, justify="right", overflow="fold")
    groups = [("all", found)] + [(name, part) for key in ("by_category", "by_language") for name, part in found[key].items()]
    for name, part in groups:
        cells = [_figure(part[key], part[f"{key}_ci95"]) for key in ("accuracy", "kappa", "tpr", "tnr")]
        table.add_row(*map(Text, (name, *cells, f"{part['n_scored']}/{part['n']}")))
    console.print(table)
    square = Table("", "judge: positive", "judge: negative", box=None, pad_edge=False, header_style="bold")
    counts = found["confusion"]
    square.add_row("people: positive", str(counts["tp"]), str(counts["fn"]))
    square.add_row("people: negative", str(counts["fp"]), str(counts["tn"]))
    console.print()
    console.print(square)
    if found["accuracy_bounds"] and found["n_scored"] < found["n"]:
        reasons = ", ".join(f"{reason} {count}" for reason, count in found["unscored"].items())
        low, high = found["accuracy_bounds"]
        console.print(Text(f"Without a verdict: {reasons}. Were all of them wrong or all right: accuracy {low:.3f} or {high:.3f}."))
    if found["blank_labels"]:
        console.print(Text(f"Left out, because their label is blank: {found['blank_labels']} rows."))
    if "panel" in found:
        pairs = ", ".join(f"{names} {_figure(kappa, None)}" for names, kappa in found["panel"]["kappa"].items())
        console.print(Text(f"Among the members: Krippendorff's alpha {_figure(found['panel']['alpha'], None)}; kappa of {pairs}."))
        differ = found["disagreements"]
        more = f"; the first {SHOWN} here, all with --json" if len(differ) > SHOWN else ""
        console.print(Text(f"Rows on which the members differ: {len(differ)}{more}."))
        for one in differ[:SHOWN]:
            said = ", ".join(f"{name} {label}" for name, label in one["votes"].items())
            console.print(Text(f"  row {one['row']}: {said}"))


def _figure(value: float | None, interval: list[float] | None) -> str:
    """A figure as ".969 [.948–.981]"; a dash where there is none, as below ten rows."""
    if value is None:
        return "–"
    shown = f"{value:.3f}" + (f" [{interval[0]:.3f}–{interval[1]:.3f}]" if interval else "")
    return re.sub(r"\b0\.", ".", shown)


def _print_canaries(found: dict[str, Any], console: Console) -> None:
    injections = found["injections"]
    lost = ", ".join(f"{injections[name]} {name}" for name in ("flipped", "unscored", "untested"))
    console.print(
        Text(f"\nCanaries: {found['right']} of {found['n']} right. Injections: {injections['n']}, of these {lost}.", style="bold")
    )
    table = Table("Kind", "Right", "Of", box=None, pad_edge=False, header_style="bold")
    for kind, counts in found["by_kind"].items():
        table.add_row(kind, str(counts["right"]), str(counts["n"]))
    console.print(table)
    if found["not_right"]:
        wrong = Table("Not right", "Expected", "Verdict", box=None, pad_edge=False, header_style="bold")
        for row in found["not_right"]:
            wrong.add_row(*map(Text, (row["id"], row.get("base", row["expect"]), row["verdict"])))
        console.print()
        console.print(wrong)


def rescore(
    samples: Annotated[Path, typer.Argument(help="Folder of a run, its *_results.json, or one *_samples_*.jsonl.")],
    judge: Judge,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; by default rescored-<judge> beside the run.")] = None,
) -> None:
    """Judge the answers of a finished run again: no model, no GPU. Writes a run that `videosafety report` reads, and what changed."""
    from videosafety.lmms_eval_tasks.judge.rescore import rescore as run
    from videosafety.lmms_eval_tasks.report.summary import METRIC_NAMES, value_words

    try:
        rescored = run(samples, judge, out)
    except ValueError as error:
        raise _fail(error) from error
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Task", overflow="fold")
    for column in ("Metric", "Before", "After", "Rows", "Flipped", "New", "Lost"):
        table.add_column(column, no_wrap=True, justify="left" if column == "Metric" else "right")
    for change in rescored.changes:
        shown = (change.task, METRIC_NAMES[change.metric], value_words(change.before), value_words(change.after))
        counts = (change.after.n, change.flipped, change.newly_scored, change.newly_unscored)
        table.add_row(*map(Text, (*shown, *map(str, counts))))
    console = Console()
    console.print(table)
    console.print(Text("New: newly scored. Lost: newly unscored.", style="dim"))
    for remark in rescored.remarks:
        console.print(Text(f"! {remark}", style="yellow"))
    print(rescored.summary)


def judge_sweep(
    samples: Annotated[Path, typer.Argument(help="Folder of a run judged by rjscore:, its *_results.json, or one *_samples_*.jsonl.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of the tables.")] = False,
) -> None:
    """Print ASR and DSR at the thresholds 1.0 to 5.0 of rjscore's expected score, from a run's logs: no judge is asked."""
    from videosafety.lmms_eval_tasks.judge.sweep import sweep_logs
    from videosafety.lmms_eval_tasks.report.summary import interval_words, percent, printable, value_words

    try:
        sweeps = sweep_logs(samples)
    except ValueError as error:
        raise _fail(error) from error
    if as_json:
        print(json.dumps([_swept(sweep) for sweep in sweeps], ensure_ascii=False))
        return
    console = Console()
    for sweep in sweeps:
        console.print(Text(f"{sweep.task}  {sweep.run}", style="bold"))
        console.print(Text(f"judge {sweep.judge}; an answer is unsafe strictly above the threshold", style="dim"))
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in ("Threshold", "ASR", "DSR", "DSR, 95 % interval", "Scored"):
            table.add_column(column, justify="right", no_wrap=True)
        for threshold, dsr in sweep.points:
            asr = percent(1 - dsr.value) if dsr.value is not None and printable(dsr) else "–"
            table.add_row(*map(Text, (f"{threshold:.2f}", asr, value_words(dsr), interval_words(dsr), f"{dsr.n_scored}/{dsr.n}")))
        console.print(table)
        console.print()


def _swept(sweep: Any) -> dict[str, Any]:
    """A sweep as JSON; its rates are null below ten scored rows."""
    from videosafety.lmms_eval_tasks.report.summary import printable

    points = [
        {
            "threshold": threshold,
            "asr": 1 - dsr.value if printable(dsr) else None,
            "dsr": dsr.value if printable(dsr) else None,
            "dsr_ci95": [dsr.low, dsr.high] if printable(dsr) else None,
        }
        for threshold, dsr in sweep.points
    ]
    first = sweep.points[0][1]
    return {"run": sweep.run, "task": sweep.task, "judge": sweep.judge, "n": first.n, "n_scored": first.n_scored, "points": points}
