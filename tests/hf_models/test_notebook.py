"""The notebook's code cells run from top to bottom on a tiny model, in under a minute."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

NOTEBOOK = ROOT / "docs" / "notebooks" / "alarm_tokens.ipynb"


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_runs_on_a_tiny_model(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("ALARM_MODEL", "ALARM_REVISION"):
        monkeypatch.delenv(name, raising=False)
    seen: dict[str, Any] = {"__name__": "notebook"}
    start = time.process_time()
    for number, source in enumerate(cells("code")):
        exec(compile(source, f"cell {number}", "exec"), seen)
    assert time.process_time() - start < 60
    assert 0 < seen["result"]["p_visual"] < 1
    assert len(seen["scores"].segments) > 3
    assert len(seen["figure"].axes) == 1 + len(seen["scores"].peaks) > 1
    seen["figure"].savefig(tmp_path / "timeline.png")


def test_it_ships_without_outputs() -> None:
    """Figures of a random model say nothing, and outputs name the machine that made them."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert len(cells("markdown")) >= 5
