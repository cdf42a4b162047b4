"""`videosafety publish results`: figures of lmms-eval runs in a model's repository: .eval_results, model-index, a table in its card."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCard, eval_result_entries_to_yaml

from videosafety.hub_cards.dataset import FACTS, environment
from videosafety.hub_cards.lines import Line, from_rows, task_lines
from videosafety.hub_cards.upload import PublishError, Upload, check_repo, read_remote
from videosafety.lmms_eval_tasks.judge.redact import one_line
from videosafety.lmms_eval_tasks.report.load import ReportError, Run, load
from videosafety.lmms_eval_tasks.report.summary import bounds_words, interval_words, metric_hint, metric_name, task_title, value_words

KEPT = "safety_results.json"  # all lines that were ever published to a model: card, model-index and .eval_results are made from it
FOLDER = ".eval_results"
START, END = "<!-- videosafety results: made by `videosafety publish results`, do not edit -->", "<!-- end of videosafety results -->"
TOOL = "videosafety"  # marks our entries of a model-index in their `args`
TASK_TYPE = "video-text-to-text"


def read_runs(paths: Sequence[Path], partial: bool) -> list[Run]:
    """The runs of these results folders and files, whole ones only unless `partial`.

    Raises:
        PublishError: no results, a broken file, or a run with --limit.
    """
    try:
        runs = [run for run in load(list(paths)) if run.tasks]
    except ReportError as error:
        raise PublishError(str(error)) from error
    if not runs:
        raise PublishError(f"{', '.join(map(str, paths))}: no task of videosafety in these results")
    for run in runs:
        if run.config.get("limit") not in (None, -1) and not partial:
            raise PublishError(
                f"{run.path}: only part of each task was run (--limit {run.config['limit']}): run all of it, or say --partial, "
                "which is then written beside the figures"
            )
    return runs


def of_model(runs: Sequence[Run], model: str, evaluated_as: str | None) -> list[Line]:
    """The main figure of every task of these runs, which must be of `model`, or of what `evaluated_as` says is the same checkpoint.

    Raises:
        PublishError: another model, or one task twice.
    """
    wanted = evaluated_as or model
    for run in runs:
        if run.model != wanted:
            raise PublishError(
                f"{run.path}: these are results of {run.model}, not of {wanted}. If {model} holds that very checkpoint, say so: "
                f"--evaluated-as {run.model}"
            )
    lines = [line for run in runs for line in task_lines(run, model)]
    seen: dict[str, Line] = {}
    for line in lines:
        other = seen.setdefault(line.name, line)
        if other is not line:
            raise PublishError(
                f"{line.name} is there twice, judged by {other.judged_by} and by {line.judged_by}: give the results of one judge "
                "and one setting"
            )
    return lines


def at_homes(lines: Iterable[Line], homes: Mapping[str, str]) -> list[Line]:
    """The lines with the place on the Hub of sets that were not read from there: `homes` maps a set to ORG/NAME@COMMIT.

    Raises:
        PublishError: a set that no line is of, no commit, or a copy that says of itself that it is of another state.
    """
    from dataclasses import replace

    found = list(lines)
    for name, home in homes.items():
        repo, _, commit = home.partition("@")
        check_repo(repo)
        if not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise PublishError(f"--dataset {name}={home}: pin it, as {name}=ORG/NAME@<the 40 digits of a commit>")
        mine = [line for line in found if line.dataset == name]
        if not mine:
            raise PublishError(
                f"--dataset {name}={home}: no task of {name} in these results; there are {', '.join({line.dataset for line in found})}"
            )
        text = read_remote(repo, "dataset", FACTS, commit)
        stated = json.loads(text) if text else {}
        for line in mine:
            if line.data_hub and line.data_hub != repo:
                raise PublishError(f"--dataset {name}={home}: the run says that it read {line.data_hub}")
            if line.data_hash and stated.get("hash") != line.data_hash:
                raise PublishError(
                    f"--dataset {name}={home}: that copy is of state {stated.get('hash') or 'unknown'}, the run was made on "
                    f"{line.data_hash}"
                )
        found = [replace(line, data_hub=repo, data_revision=commit) if line.dataset == name else line for line in found]
    return found


# --- what goes into the model's repository ---------------------------------------------------------------------------------------------


def make(lines: Sequence[Line], model: str, kept: str | None, readme: str | None, create_pr: bool) -> Upload:
    """The change to the model's repository.

    Args:
        kept: the repository's safety_results.json, None where it has none. A task's figure replaces an older one of the same task.
        readme: its README.md, None where it has none.

    Raises:
        PublishError: a file of the repository cannot be read.
    """
    older = {line.name: line for line in _kept_lines(kept, model)}
    merged = sorted((older | {line.name: line for line in lines}).values(), key=lambda line: (line.dataset, line.name))
    files: dict[str, bytes | Path] = {
        KEPT: (json.dumps([asdict(line) for line in merged], indent=1, ensure_ascii=False) + "\n").encode(),
        "README.md": merge_card(readme, model, merged).encode(),
    }
    for name, entries in eval_results(merged).items():
        files[f"{FOLDER}/videosafety_{name}.yaml"] = yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=10_000).encode()
    digest = one_line(_digest(files), 12)
    return Upload(
        model, "model", files, f"Safety results ({', '.join(sorted({line.dataset for line in merged}))}), {digest}", create_pr=create_pr
    )


def _digest(files: Mapping[str, bytes | Path]) -> str:
    import hashlib

    digest = hashlib.sha256()
    for name, body in sorted(files.items()):
        digest.update(name.encode() + (body if isinstance(body, bytes) else body.read_bytes()))
    return digest.hexdigest()


def _kept_lines(kept: str | None, model: str) -> list[Line]:
    if kept is None:
        return []
    try:
        rows = json.loads(kept)
    except json.JSONDecodeError as error:
        raise PublishError(f"{model}: its {KEPT} is not JSON ({error}): remove it, and publish all results again") from error
    return from_rows(rows if isinstance(rows, list) else [rows], f"{model}: {KEPT}")


def eval_results(lines: Iterable[Line]) -> dict[str, list[dict[str, Any]]]:
    """Set -> the entries of its file in .eval_results (hub-docs, eval_results.yaml), of figures whose set is on the Hub.

    A figure without a value, or of too few scored rows, has no entry: the format asks for a value. Values are shares, as lmms-eval's are.
    """
    found: dict[str, list[EvalResultEntry]] = {}
    for line in lines:
        if line.data_hub and line.figure is not None:
            entry = EvalResultEntry(
                dataset_id=line.data_hub,
                task_id=line.name,
                value=round(line.figure, 6),
                dataset_revision=line.data_revision,
                date=line.date,
                source_url=line.source,
                source_name="Verdicts, row by row" if line.source else None,
                notes=notes(line),
            )
            found.setdefault(line.dataset, []).append(entry)
    return {name: eval_result_entries_to_yaml(entries) for name, entries in found.items()}


def notes(line: Line) -> str:
    """What one must know of a figure, in one line."""
    parts = [
        f"{metric_name(line.metric)}: {metric_hint(line.metric, line.higher_is_better)}",
        f"95 % interval {interval_words(line.rate)}",
        f"n={line.n_scored} scored of {line.n}",
        *([f"{line.rate.unscored} unscored, bounds {bounds_words(line.rate)}"] if line.rate.unscored else []),
        *([f"partial run, --limit {line.limit}"] if line.limit else []),
        f"judge {line.judged_by}",
        *([f"model revision {line.revision}"] if line.revision else []),
        *([f"policy v{line.policy} {line.policy_hash}"] if line.policy else []),
        f"data {data_words(line)}",
        f"task version {line.task_version}, videosafety {line.videosafety}, lmms-eval {line.lmms_eval}",
        f"command: {' '.join(line.command.replace(chr(92), ' ').split())}",
    ]
    return "; ".join(parts)


def data_words(line: Line) -> str:
    """The state of the data: name, version, hash, and the repository with its commit."""
    words = (line.data_name or line.dataset_title, line.data_version, line.data_hash)
    place = f"{line.data_hub or ''}@{line.data_revision[:12]}" if line.data_revision else ""
    return " ".join(str(word) for word in (*words, place) if word)


def model_index(lines: Iterable[Line]) -> list[EvalResult]:
    """The legacy form of the same figures, which takes any data set. Figures without a value are left out: it asks for one."""
    return [
        EvalResult(
            task_type=TASK_TYPE,
            task_name=task_title(line.name) or line.name,
            dataset_type=line.data_hub or line.dataset,
            dataset_name=" ".join(word for word in (line.data_name or line.dataset_title, line.data_version) if word),
            dataset_config=line.name,
            dataset_revision=line.data_revision,
            metric_type=line.metric,
            metric_name=f"{metric_name(line.metric)} ({metric_hint(line.metric, line.higher_is_better)})",
            metric_value=round(line.figure, 6),
            metric_args=_arguments(line),
            source_url=line.source,
            source_name="Verdicts, row by row" if line.source else None,
        )
        for line in lines
        if line.figure is not None
    ]


def _arguments(line: Line) -> dict[str, Any]:
    facts = {
        "tool": TOOL,
        "n": line.n,
        "n_scored": line.n_scored,
        "ci95": _pair(line.low, line.high),
        "bounds": _pair(line.bound_low, line.bound_high) if line.rate.unscored else None,
        "judge": line.judged_by,
        "model_revision": line.revision,
        "policy_hash": line.policy_hash,
        "data_hash": line.data_hash,
        "limit": line.limit,
        "date": line.date,
        "command": " ".join(line.command.replace("\\", " ").split()),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _pair(low: float | None, high: float | None) -> list[float] | None:
    return None if low is None or high is None else [round(low, 6), round(high, 6)]


def merge_card(readme: str | None, model: str, lines: Sequence[Line]) -> str:
    """The model's README with our entries of model-index and our section, both replaced where they are there; the rest is untouched.

    Raises:
        PublishError: metadata that huggingface_hub cannot read.
    """
    try:
        card = ModelCard(readme if readme is not None else f"---\n{{}}\n---\n\n# {model.split('/')[1]}\n")
    except ValueError as error:
        raise PublishError(
            f"{model}: its README.md has metadata that huggingface_hub cannot read ({one_line(str(error))}); mend it first"
        ) from error
    facts: Any = card.data  # a model's, whose fields the type of cards in general does not name
    theirs = [one for one in facts.eval_results or [] if (one.metric_args or {}).get("tool") != TOOL]
    ours = model_index(lines)
    facts.eval_results = [*theirs, *ours] or None
    if facts.eval_results and not facts.model_name:
        facts.model_name = model.split("/")[1]
    section = f"{START}\n{results_section(lines)}{END}"
    text = card.text.rstrip("\n")
    if START in text and END in text:
        before, _, rest = text.partition(START)
        text = before + section + rest.partition(END)[2]
    else:
        text = f"{text}\n\n{section}"
    card.text = text + "\n"
    return str(card)


def results_section(lines: Sequence[Line]) -> str:
    """The section of the card: a table of every figure, those without a value too, and what they rest on."""
    shown = [
        {
            "name": line.name,
            "title": task_title(line.name),
            "metric": f"{metric_name(line.metric)} {'↑' if line.higher_is_better else '↓'}",
            "value": value_words(line.rate),
            "interval": interval_words(line.rate),
            "scored": f"{line.n_scored} of {line.n}",
            "bounds": bounds_words(line.rate),
            "judge": line.judged_by,
            "data": data_words(line),
        }
        for line in lines
    ]
    commands = list(dict.fromkeys(line.command for line in lines))
    hints = dict.fromkeys((metric_name(line.metric), metric_hint(line.metric, line.higher_is_better)) for line in lines)
    rests = list(dict.fromkeys((f"v{line.policy}", line.policy_hash) for line in lines if line.policy))
    limits = sorted({line.limit for line in lines if line.limit})
    sources = list(dict.fromkeys(line.source for line in lines if line.source))
    revisions = list(dict.fromkeys(line.revision for line in lines if line.revision))
    template = environment().get_template("results_section.md.jinja")
    return template.render(lines=shown, commands=commands, hints=hints, policies=rests, limits=limits, sources=sources, revisions=revisions)
