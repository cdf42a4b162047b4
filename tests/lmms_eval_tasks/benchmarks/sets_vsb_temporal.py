"""vsb_temporal ships with the package: two of its items are enough where a test wants any."""

from __future__ import annotations

import pytest


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Two items instead of 38: their clips are rendered."""
    from videosafety.lmms_eval_tasks.vsb_temporal import clips, docs, recipes

    two = recipes.items()[:2]
    for module in (clips, docs):
        patch.setattr(module, "items", lambda: two)
