"""CSV files of data sets, read strictly: every row whole, every wanted column filled, or one error that names file and row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from videosafety.lmms_eval_tasks.data import MAX_JSON, MissingData


def read_csv(file: Path, columns: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """(which row, the row) of a CSV file with a header, in UTF-8 with or without a byte order mark; values are text as written.

    Args:
        columns: those that every row must fill. Others are kept, and may be empty.

    Raises:
        MissingData: not there, too large, not UTF-8, not CSV, no rows, or a row that is not whole.
    """
    try:
        if file.stat().st_size > MAX_JSON:
            raise MissingData(f"videosafety: {file} is larger than {MAX_JSON >> 20} MiB; that is not this dataset")
        text = file.read_bytes().decode("utf-8-sig")
        found = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    except FileNotFoundError as error:
        raise MissingData(f"videosafety: {file} is missing; `videosafety data status` shows what the folder must hold") from error
    except UnicodeDecodeError as error:
        raise MissingData(f"videosafety: {file} is not UTF-8 ({error.reason}); fetch the data again") from error
    except csv.Error as error:
        raise MissingData(f"videosafety: {file} is not CSV ({error}); fetch the data again") from error
    if not found:
        raise MissingData(f"videosafety: {file} has no rows; fetch the data again")
    named = [(f"{file}, row {number}", row) for number, row in enumerate(found, 1)]
    for where, row in named:
        if None in row or None in row.values():
            raise MissingData(f"videosafety: {where}: has more or fewer values than the header has names; fetch the data again")
        if empty := [column for column in columns if not row.get(column, "").strip()]:
            raise MissingData(f"videosafety: {where}: {', '.join(empty)} is missing; fetch the data again")
    return named
