"""A small local copy in the layout of vse."""

from __future__ import annotations

from pathlib import Path

import sets_vsb


def local_copy(root: Path) -> None:
    sets_vsb.local_copy(root, "vse")
