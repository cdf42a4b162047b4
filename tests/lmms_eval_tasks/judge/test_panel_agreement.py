"""How far a panel's members agree: with every result, in the records, the results file of a run or rescore, and the report."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from test_rescore import ANSWERS, OURS, STAMP, write_run

from videosafety.lmms_eval_tasks import metrics
from videosafety.lmms_eval_tasks.judge import get_judge
from videosafety.lmms_eval_tasks.judge.agreement import panel_agreement
from videosafety.lmms_eval_tasks.judge.rescore import rescore
from videosafety.lmms_eval_tasks.report.html import render
from videosafety.lmms_eval_tasks.report.load import load
from videosafety.lmms_eval_tasks.report.table import print_table

PANEL = "panel:refusal+keyword:xstest+keyword:harmbench"
S, U, N = "safe", "unsafe", "unscored"


def test_alpha_kappa_and_n() -> None:
    """Alpha by hand: of 4 pairable labels in 2 rows, 2 coincidences differ in the one row; expected 8/3 of disagreement by chance."""
    found = panel_agreement([{"a": S, "b": S}, {"a": S, "b": U}, {"a": N, "b": U}, {}])
    assert found["n"] == 2
    assert found["alpha"] == pytest.approx(0.0)
    assert found["kappa"] == {"a / b": pytest.approx(0.0)}
    assert panel_agreement([{"a": S, "b": S}, {"a": U, "b": U}]) == {"alpha": 1.0, "kappa": {"a / b": 1.0}, "n": 2}
    assert panel_agreement([{"a": S, "b": S}] * 20) == {"alpha": None, "kappa": {"a / b": None}, "n": 20}
    assert panel_agreement([{}, {}]) == {"alpha": None, "kappa": {}, "n": 0}


def test_records_of_a_panel_carry_its_votes_and_of_one_judge_do_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", PANEL)
    rows = [metrics.process_harmful({"id": str(n), "query": "?", "video_id": None}, [answer]) for n, answer in enumerate(ANSWERS)]
    found = metrics.panel_agreement([row["panel_agreement"] for row in rows])
    assert found["n"] == 11  # nobody is asked about the empty answer
    assert len(found["kappa"]) == 3
    assert found["alpha"] == 1.0
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "refusal")
    assert "panel_agreement" not in metrics.process_harmful({"id": "1", "query": "?", "video_id": None}, ["Sure."])


def test_results_and_report_say_how_far_the_members_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path / "cache"))
    answers = [*ANSWERS[:-1], "I cannot say that it is easy, but here is how. Step 1: take a knife. Step 2: go."]
    write_run(tmp_path / "run", dict.fromkeys(OURS, answers))
    rescore(tmp_path / "run", PANEL, tmp_path / "out")
    written = json.loads((tmp_path / "out" / f"{STAMP}_results.json").read_text(encoding="utf-8"))
    found = written["results"]["vsb_hh"]["panel_agreement,none"]
    ids = get_judge(PANEL).id.removeprefix("panel:").split("+")
    assert list(found["kappa"]) == [f"{ids[0]} / {ids[1]}", f"{ids[0]} / {ids[2]}", f"{ids[1]} / {ids[2]}"]
    assert 0.5 < found["alpha"] < 1.0
    runs = load([tmp_path / "out"])
    out = io.StringIO()
    print_table(runs, Console(file=out, width=400))
    first, kappa = next(iter(found["kappa"].items()))
    expected = f"Panel, vsb_hh: Krippendorff's alpha {found['alpha']:.2f}; kappa of {first} {kappa:.2f}"
    assert expected in out.getvalue()
    assert expected.replace("'", "&#39;") in render(runs)


def test_a_panel_of_few_rows_prints_no_figure_and_one_judge_prints_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path / "cache"))
    write_run(tmp_path / "run", {"vsb_hh": ANSWERS[:4]})
    rescore(tmp_path / "run", PANEL, tmp_path / "panel")
    rescore(tmp_path / "panel", "refusal", tmp_path / "one")
    shown = {}
    for name in ("panel", "one"):
        out = io.StringIO()
        print_table(load([tmp_path / name]), Console(file=out, width=400))
        shown[name] = out.getvalue()
    assert "Panel, vsb_hh: n=4, too few" in shown["panel"]
    assert "alpha" not in shown["panel"]
    assert "Panel, " not in shown["one"]
    rows = (tmp_path / "one" / f"{STAMP}_samples_vsb_hh.jsonl").read_text(encoding="utf-8")
    assert "panel_agreement" not in rows  # what the earlier judges said does not stay beside the new verdicts
