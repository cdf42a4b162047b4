"""What lmms-eval leaves in an output folder, read strictly: results files and the sample logs beside them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS, SAMPLES = "_results.json", "_samples_"
METRICS = ("dsr", "frr")


class LogError(ValueError):
    """These files cannot be used; the message names file and line and says what to do."""


def read_results(path: Path) -> dict[str, Any]:
    """A results file as written; it has `results`, a mapping.

    Raises:
        LogError: it cannot be read, is cut, or is no results file.
    """
    try:
        raw = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise LogError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}). Copy the file again, or repeat the run.") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("results"), dict):
        raise LogError(f"{path}: no `results` in this file. Is it one that lmms-eval wrote?")
    return raw


def read_samples(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file and line in words, row) of every row of a sample log.

    Raises:
        LogError: it cannot be read, or a line is no whole record.
    """
    # split at LF only: str.splitlines would also cut at U+2028, which answers may hold unescaped
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise LogError(
                f"{where}: not a whole JSON record ({error.msg}). The run was stopped while writing, or the copy is cut: "
                "repeat the run, or delete this line, and the row is missing from every figure."
            ) from error
        if not isinstance(row, dict):
            raise LogError(f"{where}: not a sample record. Is it a log that lmms-eval wrote?")
        yield where, row


def metric_of(row: dict[str, Any]) -> str | None:
    """The metric whose record a sample carries, None for rows of tasks that are not ours."""
    return next((metric for metric in METRICS if isinstance(row.get(metric), dict)), None)


def find_samples(place: Path) -> dict[tuple[Path, str], list[Path]]:
    """The sample logs in a folder (and its folders), of one *_results.json, or one log, by the folder and time stamp of their run.

    Raises:
        LogError: no such place, or no sample log there.
    """
    if place.is_dir():
        logs = sorted(place.rglob(f"*{SAMPLES}*.jsonl"))
    elif not place.exists():
        raise LogError(f"{place}: no such file or folder")
    elif place.name.endswith(RESULTS):
        logs = sorted(place.parent.glob(f"{place.name.removesuffix(RESULTS)}{SAMPLES}*.jsonl"))
    elif SAMPLES in place.name and place.suffix == ".jsonl":
        logs = [place]
    else:
        raise LogError(f"{place}: neither a folder, nor *{RESULTS}, nor *{SAMPLES}*.jsonl")
    runs: dict[tuple[Path, str], list[Path]] = {}
    for log in logs:
        runs.setdefault((log.parent, log.name.split(SAMPLES)[0]), []).append(log)
    if not runs:
        raise LogError(f"{place}: no sample logs (*{SAMPLES}*.jsonl). Was the run made with --log_samples?")
    return runs


def task_of(log: Path) -> str:
    """The task in a sample log's name."""
    return log.name.split(SAMPLES, 1)[1].removesuffix(".jsonl")


def read_text(path: Path) -> str:
    """A file's text.

    Raises:
        LogError: it is not UTF-8, or cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise LogError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}). Copy the file again, or repeat the run.") from error
    except OSError as error:
        raise LogError(f"{path}: cannot be read ({error.strerror}).") from error
