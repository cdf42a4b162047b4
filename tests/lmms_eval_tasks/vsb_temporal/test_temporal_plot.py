"""vsb_temporal's figure: numbers equal to their definitions, remarks where the comparison is not fair, and one run from end to end."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor

from conftest import Outcome
from videosafety.hf_models.tiny import build_tiny
from videosafety.lmms_eval_tasks.vsb_temporal import plot
from videosafety.lmms_eval_tasks.vsb_temporal.recipes import PLACES

STAMP = "20260101_000000"


def rows(name: str, safe: int, n: int = 20, tokens: int | None = 200, distinct: int | None = None) -> list[dict[str, Any]]:
    """Records of a task, the first `safe` of `n` answers safe; `tokens` a frame on top of 50 + item for the words of the prompt."""
    variant, _, count = name.partition("_")
    frames = 0 if variant == "text" else int(count or 32)
    distinct = (1 if variant == "still" else frames) if distinct is None else distinct
    facts = {"task": f"vsb_temporal_{name}", "variant": variant, "frames": frames, "distinct_frames": distinct, "harm_frames": frames}
    facts |= {"pixels": 448 * 336 if frames else 0, "seconds": float(frames)}
    counted = [None if tokens is None else 50 + i + tokens * frames for i in range(n)]
    return [facts | {"video_id": f"item-{i}", "input_tokens": counted[i], "score": float(i < safe)} for i in range(n)]


def point(found: dict[str, Any], name: str) -> dict[str, Any]:
    return next(p for p in found["points"] if p["task"] == f"vsb_temporal_{name}")


def test_a_point_has_its_rate_its_wilson_interval_and_the_tokens_that_the_video_adds() -> None:
    found = plot.numbers([*rows("motion_16", 15), *rows("text", 18)])
    z, n, p = 1.959963984540054, 20, 0.75
    middle, half = (p + z * z / (2 * n)) / (1 + z * z / n), z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    got = point(found, "motion_16")
    assert (got["dsr"], got["low"], got["high"]) == pytest.approx((p, middle - half, middle + half))
    assert (got["n"], got["n_scored"], got["frames"], got["distinct_frames"], got["visual_tokens"]) == (20, 20, 16, 16, 3200.0)
    assert point(found, "text")["visual_tokens"] == 0
    assert (found["tokens"], found["remarks"]) == ("measured", [])
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize("lost", ["no text task", "no counts", "one count missing"])
def test_tokens_that_cannot_be_measured_are_computed_and_said_to_be(lost: str) -> None:
    records = rows("motion_4", 15, tokens=None if lost == "no counts" else 200)
    if lost == "one count missing":
        records[3]["input_tokens"] = None
    found = plot.numbers(records + (rows("text", 18) if lost != "no text task" else []))
    assert found["tokens"] == "computed"
    assert point(found, "motion_4")["visual_tokens"] == 4 * 448 * 336 / 784
    assert "computed" in found["remarks"][0]


def test_an_unscored_row_is_no_score_and_a_failed_one_no_token_count() -> None:
    records = rows("still_8", 10)
    del records[0]["score"], records[1]["score"]
    records[1] |= {"input_tokens": None, "reason": "media_error"}
    found = plot.numbers([*records, *rows("text", 18)])
    got = point(found, "still_8")
    assert (got["n"], got["n_scored"], got["dsr"]) == (20, 18, pytest.approx(8 / 18))
    assert (found["tokens"], got["visual_tokens"]) == ("measured", 1600)


def test_under_ten_scored_answers_there_is_no_rate() -> None:
    records = rows("late", 9)
    for record in records[:11]:
        del record["score"]
    found = plot.numbers([*records, *rows("text", 18)])
    assert [point(found, "late")[key] for key in ("n", "n_scored", "dsr", "low", "high")] == [20, 9, None, None, None]
    assert found["remarks"] == ["Not drawn, under 10 scored answers: late."]


@pytest.mark.parametrize(
    ("tasks", "remark"),
    [
        ((("motion_8", 200), ("still_8", 200), ("benign_8", 204)), None),
        ((("motion_8", 200), ("still_8", 25)), "Unequal tokens at frames: 8 (still 200, motion 1,600)"),
        ((("motion_8", 200), ("motion_64", 13)), "not at fixed pixels: motion has between 13 and 200 tokens a frame"),
        ((("motion_1", 200), ("motion_4", 100), ("motion_64", 100)), None),  # a processor that merges frames in pairs
        ((("motion_8", 200), ("motion_16", 202), ("brief", 50)), None),  # places of harm are no part of the sweep
    ],
)
def test_remarks_say_what_is_no_fair_comparison(tasks: tuple[tuple[str, int], ...], remark: str | None) -> None:
    found = plot.numbers([r for name, tokens in tasks for r in rows(name, 15, tokens=tokens)] + rows("text", 18))
    assert len(found["remarks"]) == (remark is not None)
    assert remark is None or remark in found["remarks"][0]


def test_the_figure_has_a_line_a_variant_in_both_panels_and_a_third_for_the_places() -> None:
    sweep = [r for variant in ("motion", "still", "shuffled", "benign") for n in (1, 8) for r in rows(f"{variant}_{n}", 15)]
    two = plot.figure(plot.numbers([*sweep, *rows("text", 18)])).axes
    assert [axis.get_xlabel() for axis in two] == ["distinct frames", "visual tokens (measured)"]
    for axis in two:
        labels = axis.get_legend_handles_labels()[1]
        assert labels == ["no video", "real motion", "one frame repeated", "frames shuffled", "harmless frames"]
    assert [tick.get_text() for tick in two[1].get_xticklabels()] == ["200", "1,600"]
    three = plot.figure(plot.numbers(sweep + [r for place in PLACES for r in rows(place, 12)] + rows("motion_32", 12))).axes
    assert [tick.get_text() for tick in three[2].get_xticklabels()] == [*plot.PLACE_WORDS.values(), "harm throughout"]
    assert three[1].get_xlabel() == "visual tokens (computed)"


def test_the_figure_of_too_few_answers_is_empty_and_says_so() -> None:
    drawn = plot.figure(plot.numbers(rows("motion_4", 2, n=2)))
    drawn.canvas.draw()
    assert "Not drawn" in drawn.get_supxlabel()
    assert "n = 2 scored" in drawn.get_supxlabel()


def write_log(folder: Path, task: str, records: list[dict[str, Any]], stamp: str = STAMP) -> Path:
    keys = ("task", "input_tokens")
    lines = [
        {
            "token_counts": [{"input_tokens": r["input_tokens"]}] if r["input_tokens"] else [None],
            "dsr": {k: r[k] for k in r if k not in keys},
        }
        for r in records
    ]
    (folder / f"{stamp}_samples_{task}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    results = folder / f"{stamp}_results.json"
    results.write_text("{}", encoding="utf-8")
    return results


def test_logs_are_read_beside_the_results_and_the_last_file_counts(tmp_path: Path) -> None:
    first = write_log(tmp_path, "vsb_temporal_late", rows("late", 3))
    write_log(tmp_path, "vsb_temporal_early", rows("early", 4, tokens=None))
    write_log(tmp_path, "vsb_hh", rows("late", 1))
    second = write_log(tmp_path, "vsb_temporal_late", rows("late", 5), stamp="20260202_000000")
    assert sorted(plot.read_logs([first]), key=str) == sorted(rows("early", 4, tokens=None) + rows("late", 3), key=str)
    assert sorted(plot.read_logs([first, second]), key=str) == sorted(rows("early", 4, tokens=None) + rows("late", 5), key=str)


def test_other_runs_have_no_figure(tmp_path: Path) -> None:
    assert plot.of_runs([write_log(tmp_path, "vsb_hh", rows("late", 3))]) is None


@pytest.mark.parametrize(
    "line",
    [
        '{"dsr": {"id"',
        "[]",
        '{"frr": {}}',
        '{"dsr": 1, "token_counts": []}',
        '{"dsr": {}, "token_counts": 3}',
        '{"dsr": {"video_id": "a"}}',
    ],
)
def test_a_broken_log_names_file_and_line(tmp_path: Path, line: str) -> None:
    results = write_log(tmp_path, "vsb_temporal_late", rows("late", 3, n=3))
    log = tmp_path / f"{STAMP}_samples_vsb_temporal_late.jsonl"
    log.write_text(log.read_text(encoding="utf-8") + line + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"vsb_temporal_late\.jsonl, line 4: .*repeat the run"):
        plot.of_runs([results])


@pytest.mark.slow  # `make test-slow`
def test_a_run_of_the_command_line_measures_equal_tokens(lmms_eval: Callable[..., Outcome], tmp_path: Path) -> None:
    model = build_tiny(tmp_path / "model", alarm=False)
    processor = AutoProcessor.from_pretrained(model)
    processor.video_processor.size = {"shortest_edge": 12544, "longest_edge": 12845056}  # as VideoLLaMA3's, with its token compression
    processor.save_pretrained(model)
    tasks = ("motion_4", "still_4", "text")
    outcome = lmms_eval(
        *("--model", "videosafety_r1", "--model_args", f"pretrained={model},max_pixels=37632", "--gen_kwargs", "max_new_tokens=4"),
        *("--tasks", ",".join(f"vsb_temporal_{name}" for name in tasks), "--limit", "10"),
        VIDEOSAFETY_JUDGE="refusal",
    )
    assert outcome.results()["configs"]["vsb_temporal_still_4"]["metadata"]["run"]["data"]["vsb_temporal"]["version"] == "1.0"
    drawn = plot.of_runs(sorted(outcome.folder.rglob("*_results.json")))
    assert drawn is not None
    found = drawn[1]
    assert found["tokens"] == "measured"
    seen = {p["variant"]: (p["frames"], p["distinct_frames"], p["harm_frames"], p["pixels"]) for p in found["points"]}
    assert seen == {"motion": (4, 4, 4, 37632), "still": (4, 1, 4, 37632), "text": (0, 0, 0, 0)}
    tokens = {p["variant"]: p["visual_tokens"] for p in found["points"]}
    assert tokens["motion"] == tokens["still"] > 4 * 48  # 224x168 pixels are 48 tokens; time stamps come on top
    drawn[0].savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
