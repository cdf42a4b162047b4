"""The figure of vsb_temporal: DSR against distinct frames and against visual tokens, and the numbers behind it, from sample logs."""

from __future__ import annotations

import json
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from videosafety.lmms_eval_tasks.metrics import rate_of
from videosafety.lmms_eval_tasks.report.summary import MIN_SCORED
from videosafety.lmms_eval_tasks.vsb_temporal.recipes import PLACES, VARIANTS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PREFIX = "vsb_temporal_"
PIXELS_PER_TOKEN = 28 * 28  # patches of 14 pixels, 2x2 of them a token: VideoLLaMA3 (arXiv 2501.13106); only where nothing was measured
NEEDED = ("variant", "frames", "distinct_frames", "harm_frames", "pixels", "video_id")
UNEQUAL = 1.05  # variants of one number of frames whose tokens differ by more than this factor are no fair comparison
SHRUNK = 1.25  # more than that in tokens a frame is a change of size, less may be time stamps that grow longer
# Okabe and Ito's colours, told apart by colour-blind readers too
STYLES = {
    "motion": ("#0072b2", "o", "real motion"),
    "still": ("#d55e00", "s", "one frame repeated"),
    "shuffled": ("#009e73", "^", "frames shuffled"),
    "benign": ("#7f7f7f", "D", "harmless frames"),
}
PLACE_WORDS = {
    "early": "harm early",
    "late": "harm late",
    "scattered": "harm scattered",
    "brief": "harm between samples",
    "subtitle": "harm in subtitles only",
}


def read_logs(results: Iterable[Path]) -> list[dict[str, Any]]:
    """The `dsr` records of all vsb_temporal tasks in the sample logs beside these results files, with `task` and `input_tokens`.

    `input_tokens` is None where the model wrapper counts no tokens. Of a task that several files hold, the last file's rows are taken.

    Raises:
        ValueError: a line of a log is not whole; it names file and line.
    """
    tasks: dict[str, list[dict[str, Any]]] = {}
    for file in results:
        stamp = file.name.removesuffix("_results.json")
        for log in sorted(file.parent.glob(f"{stamp}_samples_{PREFIX}*.jsonl")):
            task = log.stem.removeprefix(f"{stamp}_samples_")
            lines = log.read_text(encoding="utf-8").split("\n")
            tasks[task] = [_record(line, task, f"{log}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    return [record for records in tasks.values() for record in records]


def _record(line: str, task: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
        counts = (row.get("token_counts") or [None])[0] or {}
        record = row["dsr"] | {"task": task, "input_tokens": counts.get("input_tokens")}
        return record | {key: record[key] for key in NEEDED}
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{where}: not a whole record of a vsb_temporal task ({error}); repeat the run") from error


def numbers(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the figure shows, as JSON: one point a task, and remarks on what makes the points no fair comparison.

    A point: task, variant, frames, distinct_frames, harm_frames, pixels and visual_tokens (means over its rows), n, n_scored, and dsr,
    low, high (Wilson, 95 %; rows of one item are one cluster), which are None under ten scored rows. visual_tokens is measured: prompt
    tokens of a row less those of the same item without a video (vsb_temporal_text), so that frames' time stamps and separators count too;
    or, where the logs cannot tell, computed from pixels. `tokens` says which.
    """
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["task"]].append(record)
    bare = {r["video_id"]: r["input_tokens"] for r in groups.get(f"{PREFIX}text", []) if r.get("input_tokens")}
    answered = [r for r in records if r["frames"] and r.get("reason") not in ("media_error", "generation_failed")]
    measured = bool(answered) and all(r.get("input_tokens") and r["video_id"] in bare for r in answered)
    points = [_point(task, rows, bare if measured else None) for task, rows in groups.items()]
    order = {name: place for place, name in enumerate((*VARIANTS, *PLACES, "text"))}
    points.sort(key=lambda p: (order.get(p["variant"], len(order)), p["frames"]))
    return {"tokens": "measured" if measured else "computed", "points": points, "remarks": _remarks(points, measured)}


def _point(task: str, rows: list[dict[str, Any]], bare: dict[str, int] | None) -> dict[str, Any]:
    point: dict[str, Any] = {"task": task, "variant": rows[0]["variant"]}
    point |= {key: round(mean(row[key] for row in rows), 2) for key in ("frames", "distinct_frames", "harm_frames", "pixels")}
    if bare is None:
        tokens = [row["frames"] * row["pixels"] / PIXELS_PER_TOKEN for row in rows]
    else:
        tokens = [row["input_tokens"] - bare[row["video_id"]] for row in rows if row["frames"] and row.get("input_tokens")]
    found = rate_of(rows)
    enough = found.n_scored >= MIN_SCORED
    point |= {"visual_tokens": round(mean(tokens), 1) if tokens else 0.0, "n": found.n, "n_scored": found.n_scored}
    return point | dict(zip(("dsr", "low", "high"), (found.value, found.low, found.high) if enough else (None,) * 3, strict=True))


def _remarks(points: list[dict[str, Any]], measured: bool) -> list[str]:
    """Sentences for the reader: what the figure leaves out, and whether pixels and tokens were as equal as the experiment wants them."""
    found = []
    thin = [p["task"].removeprefix(PREFIX) for p in points if p["dsr"] is None]
    if thin:
        found.append(f"Not drawn, under {MIN_SCORED} scored answers: {', '.join(thin)}.")
    if not measured:
        found.append(
            "Visual tokens are computed (28x28 pixels a token), not measured: run vsb_temporal_text too, with --model videosafety_r1."
        )
        return found
    by_count: dict[float, list[dict[str, Any]]] = defaultdict(list)
    for point in points:
        if point["variant"] in VARIANTS and point["frames"]:
            by_count[point["frames"]].append(point)
    ends = {count: (min(same, key=_tokens), max(same, key=_tokens)) for count, same in sorted(by_count.items())}
    unequal = [f"{n:g} ({a['variant']} {_tokens(a):,.0f}, {b['variant']} {_tokens(b):,.0f})" for n, (a, b) in ends.items() if _apart(a, b)]
    if unequal:
        found.append(
            f"Unequal tokens at frames: {'; '.join(unequal)}. The processor treats clips of equally many frames differently, as one "
            "does that drops patches which repeat: no fair comparison."
        )
    # one frame is left out: processors that merge frames in pairs pad it to two
    each = [_tokens(p) / p["frames"] for p in points if p["variant"] == "motion" and p["frames"] > 1 and p["visual_tokens"]]
    if each and max(each) > SHRUNK * min(each):
        found.append(
            f"Frames are not at fixed pixels: motion has between {min(each):,.0f} and {max(each):,.0f} tokens a frame, as the processor "
            "shrinks the frames of long clips. Lower max_pixels in --model_args until it does not."
        )
    return found


def _apart(low: dict[str, Any], high: dict[str, Any]) -> bool:
    return _tokens(high) > UNEQUAL * max(_tokens(low), 1.0)


def _tokens(point: dict[str, Any]) -> float:
    return float(point["visual_tokens"])


def figure(found: dict[str, Any]) -> Figure:
    """DSR against distinct frames (left) and visual tokens (right), a line a variant, and the five places of harm where they were run.

    Args:
        found: what `numbers` gives. Whiskers are 95 % Wilson intervals; the dashed line is the queries without a video.
    """
    from matplotlib.figure import Figure

    drawn = [p for p in found["points"] if p["dsr"] is not None]
    placed = [p for p in drawn if p["variant"] in PLACES]
    panels = 3 if placed else 2
    made = Figure(figsize=(5.2 * panels, 5.4), layout="constrained", facecolor="white")
    axes = made.subplots(1, panels, sharey=True, squeeze=False)[0]
    text = next((p for p in drawn if p["variant"] == "text"), None)
    for axis, key in zip(axes, ("distinct_frames", "visual_tokens"), strict=False):
        _sweep(axis, drawn, key, text)
    axes[0].set_xlabel("distinct frames")
    axes[1].set_xlabel(f"visual tokens ({found['tokens']})")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(fontsize=8, loc="best", framealpha=0.9)
    if placed:
        _places(axes[2], drawn, placed, text)
    axes[0].set_ylabel("DSR, % of scored answers that are safe")
    axes[0].set_ylim(-2, 102)
    counts = [p["n_scored"] for p in found["points"]]
    span = "no rows" if not counts else f"n = {min(counts)}" if min(counts) == max(counts) else f"n = {min(counts)} to {max(counts)}"
    caption = [f"vsb_temporal, {span} scored answers a point; whiskers: 95 % Wilson intervals; ×n: one frame, n times.", *found["remarks"]]
    made.supxlabel("\n".join(part for line in caption for part in textwrap.wrap(line, 60 * panels)), fontsize=8, x=0.01, ha="left")
    return made


def _whiskers(points: Sequence[dict[str, Any]]) -> tuple[list[float], list[list[float]]]:
    values = [100 * p["dsr"] for p in points]
    below = [max(0.0, 100 * (p["dsr"] - p["low"])) for p in points]
    return values, [below, [max(0.0, 100 * (p["high"] - p["dsr"])) for p in points]]


def _sweep(axis: Axes, drawn: list[dict[str, Any]], key: str, text: dict[str, Any] | None) -> None:
    """A line a variant over `key`, on a logarithmic axis."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_xscale("log", base=2)
    ticks: set[float] = set()
    for place, (variant, (colour, marker, words)) in enumerate(STYLES.items()):
        points = [p for p in drawn if p["variant"] == variant]
        if not points:
            continue
        ticks |= {max(p[key], 1) for p in points}
        values, errors = _whiskers(points)
        # moved apart by a few per cent, or the whiskers of equal points would hide each other
        xs = [max(p[key], 1) * 2 ** (0.07 * (place - 1.5)) for p in points]
        fan = variant == "still" and key == "distinct_frames"  # all at one: fanned out, each with its number of frames
        if fan:
            xs = [2 ** (-0.45 * (len(points) - i)) for i in range(len(points))]
        axis.errorbar(xs, values, errors, color=colour, marker=marker, markersize=5, linewidth=1.5, elinewidth=0.8, capsize=2, label=words)
        for x, value, point in zip(xs, values, points, strict=True) if fan else ():
            axis.annotate(f"×{point['frames']:g}", (x, value), (0, 7), textcoords="offset points", fontsize=7, color=colour, ha="center")
    _without_video(axis, text)
    axis.set_xticks(sorted(ticks))
    axis.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(axis="x", labelrotation=45 if key == "visual_tokens" else 0)
    axis.grid(alpha=0.25)


def _without_video(axis: Axes, text: dict[str, Any] | None) -> None:
    if text:
        axis.axhspan(100 * text["low"], 100 * text["high"], color="black", alpha=0.06, linewidth=0)
        axis.axhline(100 * text["dsr"], color="black", linestyle="--", linewidth=1, label="no video")


def _places(axis: Axes, drawn: list[dict[str, Any]], placed: list[dict[str, Any]], text: dict[str, Any] | None) -> None:
    """The five places of harm between clips of as many frames that are harmless, or harmful, throughout."""
    frames = max(p["frames"] for p in placed)
    ends = {v: p for v in ("benign", "motion") for p in drawn if p["variant"] == v and p["frames"] == frames}
    bars = [("harmless", ends["benign"], "#7f7f7f")] if "benign" in ends else []
    bars += [(PLACE_WORDS[p["variant"]], p, "#cc79a7") for p in placed]
    bars += [("harm throughout", ends["motion"], "#0072b2")] if "motion" in ends else []
    for x, (_, point, colour) in enumerate(bars):
        values, errors = _whiskers([point])
        axis.errorbar([x], values, errors, color=colour, marker="o", markersize=6, elinewidth=1, capsize=3, linestyle="none")
    _without_video(axis, text)
    axis.set_xticks(range(len(bars)), [words for words, *_ in bars], rotation=35, ha="right", fontsize=8)
    axis.set_xlabel(f"where the harm is, {frames:g} frames")
    axis.grid(alpha=0.25, axis="y")


def of_runs(results: Iterable[Path]) -> tuple[Figure, dict[str, Any]] | None:
    """The figure and its numbers from the results files of one model; None where they hold no vsb_temporal task."""
    records = read_logs(results)
    if not records:
        return None
    found = numbers(records)
    return figure(found), found
