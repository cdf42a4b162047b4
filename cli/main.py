"""The command `videosafety`: one function a command, heavy imports inside so that `--help` is fast."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from videosafety import data_build, data_sets, demo, guard, judge_cache, judging, models, publish

app = typer.Typer(
    name="videosafety",
    help="Measure the safety of video LLMs and make them safer. Evaluation itself runs through lmms-eval: lmms-eval --tasks vsb --model …",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


data_sets.app.command("build")(data_build.build)
data_sets.app.command("review")(data_build.review)
app.add_typer(data_sets.app, name="data")
app.add_typer(guard.app, name="guard")
app.add_typer(judge_cache.app, name="judge-cache")
app.add_typer(publish.app, name="publish")
app.command()(judging.audit)
app.command()(judging.rescore)
app.command("judge-sweep")(judging.judge_sweep)
app.command("build-alarm")(models.build_alarm)
app.command("demo-app")(demo.demo_app)
app.command()(models.convert)
app.command()(models.fold)


def _fail(error: Exception) -> typer.Exit:
    """Print the one line that says what is wrong; the exit status is 2, as for any wrong use of a command."""
    Console(stderr=True).print(f"videosafety: {error}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(2)


@app.command("tasks-path")
def tasks_path() -> None:
    """Print the folder of our tasks, for the lmms-eval commands that load no plugins.

    lmms-eval tasks list --include-path "$(videosafety tasks-path)"
    """
    from videosafety.lmms_eval_tasks.plugin import TASKS

    print(TASKS)


@app.command()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON list instead of the table.")] = False,
    security: Annotated[bool, typer.Option("--security", help="Look through this folder for what must not be shared or opened.")] = False,
) -> None:
    """Check the environment and say how to mend what is off. Exit status 1 when something does not work."""
    from rich.markup import escape
    from rich.table import Table

    if security:
        from videosafety.security import examine
    else:
        from videosafety.doctor import examine

    findings = examine(Path.cwd())
    if as_json:
        print(json.dumps([finding._asdict() for finding in findings]))
    else:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("", "check", "found"):
            table.add_column(column, overflow="fold")
        for finding in findings:
            mark = {"ok": "[green]ok[/]", "warning": "[yellow]look[/]", "problem": "[red]off[/]"}[finding.state]
            table.add_row(mark, escape(finding.check), escape(finding.found + (f"\n→ {finding.mend}" if finding.mend else "")))
        Console().print(table)
    raise typer.Exit(int(any(finding.state == "problem" for finding in findings)))


@app.command()
def tiny(
    out: Annotated[Path, typer.Option(help="Folder to write the checkpoint to.")],
    family: Annotated[str, typer.Option(help="videollama3, qwen2_5_vl, qwen3_vl, llava_onevision, smolvlm or internvl.")] = "videollama3",
    plain: Annotated[
        bool, typer.Option("--plain", help="Without alarm tokens: transformers' own model class, no code in the folder.")
    ] = False,
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
) -> None:
    """Make a tiny random checkpoint with its processor, offline, in seconds: for demos and tests."""
    from videosafety.hf_models.tiny import build_tiny

    if out.exists() and not out.is_dir():
        raise _fail(ValueError(f"{out} is a file; --out names a folder"))
    try:
        build_tiny(out, family, seed, alarm=not plain)
    except (ValueError, ImportError) as error:  # SmolVLM's processor needs num2words
        raise _fail(error) from error
    print(f"{out}: a tiny random {family}{'' if plain else ' with alarm tokens'}. Try it:")
    trust = "" if plain else ",trust_remote_code=True"
    print(f"  lmms-eval --model videosafety_r1 --model_args pretrained={out}{trust} --tasks vsb_hh --limit 8")


@app.command()
def report(
    results: Annotated[
        list[Path],
        typer.Argument(help="Folders or *_results.json files of lmms-eval --output_path … --log_samples; several models may be in them."),
    ],
    html: Annotated[Path | None, typer.Option(help="Where to write the page; by default report.html in the first folder.")] = None,
) -> None:
    """Show results: a table here, and one self-contained HTML page. Several models become a leaderboard."""
    from videosafety.lmms_eval_tasks.report.html import write_html
    from videosafety.lmms_eval_tasks.report.load import ReportError, load
    from videosafety.lmms_eval_tasks.report.table import print_table

    first = results[0]
    page = html or (first if first.is_dir() else first.parent) / "report.html"
    try:
        runs = load(results)
        print_table(runs, Console())
        write_html(runs, page)
    except ReportError as error:
        raise _fail(error) from error
    print(f"Page: {page}")


if __name__ == "__main__":
    app()
