"""The toy world ships with the package: a few rows of each task are enough where a test wants any."""

from __future__ import annotations

import pytest


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Three rows instead of 60."""
    from videosafety.lmms_eval_tasks.toy_world import dataset, docs

    whole = dataset.rows
    patch.setattr(docs, "rows", lambda cell: whole(cell)[:3])
