"""Judge many answers at once: local judges where they stand, remote ones concurrently and through the cache."""

from __future__ import annotations

from collections.abc import Iterable

from tqdm import tqdm

from . import Item, Judge, Verdict
from .pending import submit


def judge_all(judge: Judge, items: Iterable[Item]) -> list[Verdict]:
    """One verdict an item, in the items' order. Waits for all; a remote judge's progress shows on stderr where that is a terminal."""
    if callable(judge):
        return [judge(item) for item in items]
    pending = [submit(judge, item) for item in items]
    return [verdict.result() for verdict in tqdm(pending, desc=judge.id, unit="answer", disable=None)]
