"""The notebook on tuning: its code cells run from top to bottom on a tiny model, and what it teaches is learned."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from conftest import ROOT

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety.hf_models.calibrate import auroc

pytestmark = pytest.mark.slow  # `make test-slow`

NOTEBOOK = ROOT / "docs" / "notebooks" / "community_lora.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert notebook["nbformat"] == 4
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_runs_on_a_tiny_model(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    for name in ("TUNE_MODEL", "TUNE_REVISION", "TUNE_DATA"):
        monkeypatch.delenv(name, raising=False)
    seen: dict[str, Any] = {"__name__": "notebook"}
    start = time.process_time()
    for number, cell in enumerate(cells("code")):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), seen)
    assert time.process_time() - start < 60
    tuned = seen["work"] / "tuned"
    assert {"model.safetensors", "adapter", "plots.png", "plots.html", "training_recipe.json"} <= {file.name for file in tuned.iterdir()}
    labels = [row["textual_label"] for row in seen["shown"]]
    found = {name: [row["p_textual"] for row in seen[name]] for name in ("before", "after")}
    assert auroc(found["after"], labels) == 1.0  # of held-out clips; two questions, so this much must be learned
    assert found["before"] != found["after"]
    assert list(tmp_path.iterdir()) == []  # nothing is left where it is run


def test_it_ships_without_outputs() -> None:
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells("code"))
    assert len(cells("markdown")) >= 5
