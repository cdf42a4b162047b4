"""Calibration: figures against slow definitions, thresholds that keep their promise, and files that say what is wrong with them."""

from __future__ import annotations

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from videosafety.hf_models.calibrate import (
    Calibration,
    Threshold,
    auroc,
    auroc_interval,
    calibrate,
    ece,
    fit,
    fit_temperature,
    load_calibration,
    scale,
    threshold_for,
)
from videosafety.main import app


def slow_auroc(scores: list[float], labels: list[int]) -> float:
    pairs = [(h, s) for h, s in itertools.product(range(len(scores)), repeat=2) if labels[h] == 1 and labels[s] == 0]
    return sum(1.0 if scores[h] > scores[s] else 0.5 if scores[h] == scores[s] else 0.0 for h, s in pairs) / len(pairs)


def drawn(n: int = 400, seed: int = 0, spread: float = 2.0) -> tuple[list[float], list[int]]:
    """Calibrated probabilities and labels drawn by them."""
    random = np.random.default_rng(seed)
    p = 1 / (1 + np.exp(-random.normal(0, spread, n)))
    return p.tolist(), (random.random(n) < p).astype(int).tolist()


@pytest.mark.parametrize("digits", [1, 2, 6], ids=["many ties", "some ties", "hardly any"])
def test_auroc_is_the_chance_that_harm_ranks_higher(digits: int) -> None:
    scores, labels = drawn(80)
    rounded = [round(s, digits) for s in scores]
    assert auroc(rounded, labels) == pytest.approx(slow_auroc(rounded, labels), abs=1e-12)


@pytest.mark.parametrize(
    ("scores", "labels", "wanted"),
    [
        pytest.param([0.1, 0.9], [0, 1], 1.0, id="perfect"),
        pytest.param([0.9, 0.1], [0, 1], 0.0, id="upside down"),
        pytest.param([0.5, 0.5, 0.5], [0, 1, 1], 0.5, id="constant"),
        pytest.param([0.5, 0.7], [1, 1], None, id="one kind only"),
        pytest.param([], [], None, id="nothing"),
    ],
)
def test_auroc_at_its_ends(scores: list[float], labels: list[int], wanted: float | None) -> None:
    assert auroc(scores, labels) == wanted


@pytest.mark.parametrize(
    ("scores", "labels", "says"),
    [
        pytest.param([0.1, math.nan], [0, 1], "finite", id="NaN is no score"),
        pytest.param([0.1, math.inf], [0, 1], "finite", id="infinite"),
        pytest.param([0.1, 0.2], [0, -100], "0 .safe. or 1", id="unlabelled"),
        pytest.param([0.1, 0.2], [0], "one length", id="of different length"),
    ],
)
def test_what_is_no_score_or_label_is_refused(scores: list[float], labels: list[int], says: str) -> None:
    for figure in (auroc, ece, fit_temperature):
        with pytest.raises(ValueError, match=says):
            figure(scores, labels)


def test_ece_of_rows_worked_out_by_hand() -> None:
    # two rows in the bin of 0.05 (mean 0.04, half harmful), one in the last bin (1.0, harmful), 15 bins
    assert ece([0.02, 0.06, 1.0], [0, 1, 1]) == pytest.approx((abs(0.04 - 0.5) * 2 + 0.0) / 3)
    assert ece([0.5] * 4, [0, 1, 0, 1]) == 0.0
    assert ece([], []) is None


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_spoilt_calibrated_probabilities_is_found(temperature: float) -> None:
    p, labels = drawn(6000)
    spoilt = scale(np.array(p), temperature).tolist()  # hotter: too timid; colder: too sure
    assert fit_temperature(spoilt, labels) == pytest.approx(1 / temperature, rel=0.1)
    found = fit(spoilt, labels, 0.1)
    assert found.auroc == pytest.approx(auroc(p, labels), abs=1e-9), "a temperature keeps the order"
    if temperature != 1.0:
        assert found.ece_after < found.ece_before / 2


def test_separable_rows_take_the_coldest_temperature_and_one_kind_takes_none() -> None:
    assert fit_temperature([0.4, 0.45, 0.55, 0.6], [0, 0, 1, 1]) == pytest.approx(0.05, rel=1e-3)
    assert fit_temperature([0.4, 0.6], [1, 1]) == 1.0


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 1 / 3, 0.5, 0.99])
@pytest.mark.parametrize("rows", [[0.5], [0.1, 0.2, 0.3], [0.5] * 7, [0.0, 0.0, 1.0, 1.0], list(np.linspace(0, 1, 101))], ids=range(5))
def test_no_more_alarms_than_asked_for_and_no_lower_threshold_would_do(rows: list[float], rate: float) -> None:
    threshold = threshold_for(rows, rate)
    assert sum(p > threshold for p in rows) <= rate * len(rows) + 1e-9
    lower = [p for p in rows if p < threshold]
    assert not lower or sum(p > max(lower) for p in rows) > rate * len(rows)


@pytest.mark.parametrize("rate", [-0.1, 1.0, math.nan])
def test_a_rate_is_a_share_below_one(rate: float) -> None:
    with pytest.raises(ValueError, match="false-alarm rate"):
        threshold_for([0.5], rate)


def test_a_row_that_sets_the_threshold_does_not_exceed_it_after_a_trip_through_the_file(tmp_path: Path) -> None:
    """One rounding in the last bit would be a false alarm more than was promised."""
    p, labels = drawn(999)
    rows = [{"p_visual": a, "visual_label": b, "p_textual": a, "textual_label": b} for a, b in zip(p, labels, strict=True)]
    for rate in (0.0, 0.05, 0.2):
        found = calibrate(rows, rate)
        (tmp_path / "c.json").write_text(json.dumps(found))
        loaded = load_calibration(tmp_path / "c.json")
        alarms = [loaded.flagged(a, None) for a, label in zip(p, labels, strict=True) if label == 0]
        assert sum(map(bool, alarms)) / len(alarms) == found["visual"]["false_alarm_rate"] <= rate
        assert loaded.visual.value == max(a for a in p if not loaded.flagged(a, None))


def test_held_out_figures_are_worse_than_those_on_the_fitted_rows_where_there_is_nothing_to_learn() -> None:
    random = np.random.default_rng(1)
    found = fit(random.random(60).tolist(), ([0, 1] * 30), 0.0)
    assert found.false_alarm_rate == 0.0
    assert found.held_out_false_alarm_rate is not None
    assert found.held_out_false_alarm_rate > 0
    assert fit([0.1, 0.9], [0, 1], 0.0).held_out_false_alarm_rate is None


@pytest.mark.parametrize(
    ("positives", "negatives", "area", "low", "high"),
    [
        pytest.param(1, 1, 1.0, 0.2065, 1.0, id="one row of each kind: Wilson's for one"),
        pytest.param(10, 10, 1.0, 0.8, 1.0, id="perfect, and yet not sure"),
        pytest.param(10, 10, 0.0, 0.0, 0.2, id="upside down"),
        pytest.param(200, 200, 1.0, 0.985, 1.0, id="more rows tell more"),
    ],
)
def test_an_areas_interval_has_width_at_the_ends(positives: int, negatives: int, area: float, low: float, high: float) -> None:
    scores = [area] * positives + [1 - area] * negatives
    labels = [1] * positives + [0] * negatives
    found = auroc_interval(scores, labels, range(len(labels)))
    assert found == pytest.approx((low, high), abs=0.03)
    assert found is not None
    assert found[1] - found[0] > 0.005


def test_an_areas_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Normal scores one apart: the area is Φ(1/√2) = 0.760."""
    random = np.random.default_rng(0)
    truth, inside = 0.7602, 0
    for _ in range(300):
        scores = np.concatenate([random.normal(1, 1, 25), random.normal(0, 1, 40)]).tolist()
        low, high = auroc_interval(scores, [1] * 25 + [0] * 40, range(65)) or (1.0, 0.0)
        inside += low <= truth <= high
    assert 0.92 <= inside / 300 <= 0.99


def test_an_area_of_one_kind_has_no_interval_and_questions_about_one_video_do_not_narrow_it() -> None:
    assert auroc_interval([0.1, 0.2], [1, 1], "ab") is None
    once = auroc_interval([0.9, 0.1, 0.8, 0.2], [1, 0, 1, 0], "abcd")
    assert auroc_interval([0.9, 0.1, 0.8, 0.2] * 9, [1, 0, 1, 0] * 9, "abcd" * 9) == once


def test_rows_of_one_video_are_in_one_half(tmp_path: Path) -> None:
    """Eight questions about each video, with one p_visual and a label of chance: dealt by rows, each half knew the other's answers."""
    random = np.random.default_rng(3)
    videos = [{"video": f"{n}.mp4", "p_visual": float(random.random()), "visual_label": n % 2} for n in range(40)]
    alone, often = calibrate(videos, 0.0)["visual"], calibrate([v for v in videos for _ in range(8)], 0.0)["visual"]
    assert (often["n"], often["n_videos"], alone["n_videos"]) == (320, 40, 40)
    for figure in ("false_alarm", "detection"):
        assert often[f"held_out_{figure}_rate"] == alone[f"held_out_{figure}_rate"]
        for kind in (f"{figure}_ci95", f"held_out_{figure}_ci95"):
            assert often[kind] == pytest.approx(alone[kind]), "320 rows of 40 videos tell what 40 rows do"
    assert often["auroc_ci95"] == alone["auroc_ci95"]
    assert often["held_out_false_alarm_rate"] > 0
    named = [v | {"video": f"{n}.mp4", "video_id": v["video"]} for n, v in enumerate(v for v in videos for _ in range(8))]
    assert calibrate(named, 0.0)["visual"] == often, "copies of one video under several names"


@pytest.mark.parametrize(
    ("visual", "textual", "flagged"),
    [(0.6, 0.1, True), (0.1, 0.6, True), (0.5, 0.5, False), (None, 0.6, True), (0.6, None, True), (None, 0.4, False), (None, None, None)],
)
def test_either_raises_an_alarm_and_nothing_known_is_nothing_said(
    visual: float | None, textual: float | None, flagged: bool | None
) -> None:
    assert Calibration().flagged(visual, textual) is flagged


def test_a_modality_that_was_not_calibrated_raises_no_alarm(tmp_path: Path) -> None:
    rows = [{"p_visual": p, "visual_label": label} for p, label in ((0.1, 0), (0.2, 0), (0.9, 1))]
    found = calibrate(rows, 0.0)
    assert found["textual"] is None
    assert "0 rows labelled safe" in found["left_out"]["textual"]
    (tmp_path / "c.json").write_text(json.dumps(found))
    loaded = load_calibration(tmp_path / "c.json")
    assert (loaded.flagged(None, 1.0), loaded.flagged(0.9, 1.0), loaded.flagged(0.15, 1.0)) == (False, True, False)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        pytest.param({"p_visual": 1.5, "visual_label": 1}, "row 1: p_visual is 1.5", id="no probability"),
        pytest.param({"p_visual": math.nan, "visual_label": 1}, "row 1: p_visual is nan", id="NaN"),
        pytest.param({"p_visual": "0.5", "visual_label": 1}, "row 1: p_visual is '0.5'", id="text"),
        pytest.param({"p_visual": 0.5, "visual_label": 2}, "row 1: visual_label is 2", id="no label"),
        pytest.param({"p_visual": 0.5, "visual_label": True}, "row 1: visual_label is True", id="a truth value"),
        pytest.param({"p_visual": 0.5, "visual_label": "harmful"}, "row 1: visual_label is 'harmful'", id="a word"),
        pytest.param({"p_visual": 0.5, "visual_label": 1}, "visual: 0 rows labelled safe and 1", id="one kind only"),
        pytest.param({"p_visual": None, "visual_label": 1, "error": "no such file"}, "visual: 0 rows labelled safe and 0", id="failed row"),
        pytest.param({"p_visual": 0.5, "visual_label": -100}, "visual: 0 rows labelled safe and 0", id="unlabelled row"),
    ],
)
def test_rows_that_cannot_calibrate_say_why(row: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        calibrate([row], 0.05)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "nonsense", '{"visual": 3}', '{"visual": {"temperature": 1}}', '{"visual": {"threshold": 2}}'],
)
def test_a_file_that_is_no_calibration_is_one_error_that_names_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(ValueError, match=r"c\.json: not a calibration file .*videosafety guard calibrate --out"):
        load_calibration(tmp_path / "c.json")


def test_a_file_that_is_not_there_is_one_error() -> None:
    with pytest.raises(ValueError, match=r"gone\.json: cannot be read"):
        load_calibration(Path("gone.json"))


@pytest.mark.parametrize("value", [1.1, -0.1, math.nan])
def test_a_threshold_out_of_range_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="a threshold lies in"):
        Threshold(value)


@pytest.mark.parametrize(
    ("safe", "harmful", "rate", "threshold", "detected"),
    [
        pytest.param([0.38] * 99 + [0.99], [0.62] * 99 + [1.0], 0.0, 0.99, 0.01, id="under-confident, one safe outlier"),
        pytest.param([0.01, 0.05, 0.10], [0.70, 0.80, 0.90], 0.0, 0.10, 1.0, id="separable"),
        pytest.param([1e-9, 2e-9, 3e-9], [4e-9, 5e-9, 1e-8], 0.0, 3e-9, 1.0, id="all close to 0"),
        pytest.param([0.0, 1e-30], [1e-29, 1e-8], 0.5, 0.0, 1.0, id="denser than a clip of the logarithm"),
        pytest.param([0.2, 1 - 6e-8], [1.0, 1.0], 0.0, 1 - 6e-8, 1.0, id="all close to 1"),
    ],
)
def test_what_lies_above_the_printed_threshold_is_flagged_and_nothing_else(
    safe: list[float], harmful: list[float], rate: float, threshold: float, detected: float, tmp_path: Path
) -> None:
    rows = [{"p_visual": p, "visual_label": label} for label, part in ((0, safe), (1, harmful)) for p in part]
    found = calibrate(rows, rate)
    assert (found["visual"]["threshold"], found["visual"]["detection_rate"]) == (threshold, detected)
    (tmp_path / "c.json").write_text(json.dumps(found))
    loaded = load_calibration(tmp_path / "c.json")
    above, below = np.nextafter(threshold, 2), np.nextafter(threshold, -1)
    assert [loaded.flagged(float(p), None) for p in (below, threshold, above)] == [False, False, True]


def test_a_calibration_that_is_blind_says_so(tmp_path: Path) -> None:
    rows = [{"p_visual": p, "visual_label": 0} for p in [0.1] * 99 + [0.9]] + [{"p_visual": 0.6, "visual_label": 1}] * 100
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for more in ([], ["--json"]):
        result = CliRunner().invoke(app, ["guard", "calibrate", "--labels", str(tmp_path / "rows.jsonl"), "--target", "0", *more])
        (line,) = result.stderr.strip().splitlines()
        assert "visual: no harmful row is flagged, though AUROC is 0.990" in line
        assert "p = 0.9 set the threshold; look at these rows, or raise --target" in line
    assert calibrate(rows, 0.02)["warnings"] == {}


@pytest.mark.parametrize("version", [None, 1, 3])
def test_a_file_of_another_version_says_what_to_do(version: int | None, tmp_path: Path) -> None:
    """Version 1 compared at the temperature: its thresholds mean something else."""
    part = {"visual": {"threshold": 7.8e-20, "temperature": 0.05}}
    (tmp_path / "c.json").write_text(json.dumps(part | ({} if version is None else {"version": version})))
    with pytest.raises(ValueError, match=rf"c\.json: .* of version {version or 1}, and 2 is read here: run guard calibrate --labels again"):
        load_calibration(tmp_path / "c.json")


def test_the_command_prints_what_it_writes(tmp_path: Path) -> None:
    p, labels = drawn(60)
    lines = [json.dumps({"p_visual": a, "visual_label": b}) for a, b in zip(p, labels, strict=True)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    args = ["guard", "calibrate", "--labels", str(tmp_path / "rows.jsonl"), "--target", "0.02", "--out", str(tmp_path / "c.json")]
    table = CliRunner().invoke(app, args)
    assert table.exit_code == 0, table.output
    assert "auroc" in table.stdout
    assert "ece after" in table.stdout
    for figure in ("false alarm", "detection", "auroc", "held out false alarm", "held out detection"):
        assert re.search(rf"^{figure} ci95 +[\d.]+ to [\d.]+ ", table.stdout, re.MULTILINE), table.stdout
    assert "safe rows cannot show a rate of 0.02; 50 could" in " ".join(table.stdout.split())
    told = CliRunner().invoke(app, [*args, "--json"])
    assert json.loads(told.stdout) == json.loads((tmp_path / "c.json").read_text())
    assert load_calibration(tmp_path / "c.json").visual.value == json.loads(told.stdout)["visual"]["threshold"]


def test_the_command_names_a_line_that_is_no_row(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"p_visual": 0.5}\n{"p_visual"')
    result = CliRunner().invoke(app, ["guard", "calibrate", "--labels", str(tmp_path / "rows.jsonl")])
    assert result.exit_code == 2
    assert "rows.jsonl, line 2: not JSON" in result.stderr
