"""A small set in place of VSB-Open: two rows a cell over one clip; and two pages of vsb_typo, which ignores local sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from conftest import write_set, write_video

CELLS = ("hh", "sh", "hs", "safeq")


def local_copy(root: Path, owner: str = "vsb") -> None:
    """VIDEOSAFETY_DATA_DIR/<owner> with two rows a cell."""
    rows = [
        {"id": f"{cell}-{n}", "cell": cell, "query": f"{owner} {cell} {n}?", "video": "1.mp4", "category": "theft", "language": "en"}
        for cell in CELLS
        for n in (1, 2)
    ]
    write_video(write_set(root / owner, rows) / "1.mp4", frames=2)


def shrink(patch: pytest.MonkeyPatch) -> None:
    """Two rows of vsb_typo instead of 152."""
    from videosafety.lmms_eval_tasks.vsb import typo

    two = typo.rows()[:2]
    patch.setattr(typo, "rows", lambda: two)
