"""Scores over a video: every moment in a segment, one decode for all of them, peaks where they are, and no score of half a video."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from guard_model import alarm, guard, media  # noqa: F401
from typer.testing import CliRunner

from conftest import write_video
from videosafety.hf_models.guard import Guard, Row
from videosafety.hf_models.timeline import Scores, Segment, plot, segments, timeline
from videosafety.lmms_eval_tasks import video as video_code
from videosafety.lmms_eval_tasks.video import MediaError, Sampling
from videosafety.main import app


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """25 seconds, at 8 frames a second."""
    return write_video(tmp_path_factory.mktemp("long") / "long.mp4", frames=200, size=(64, 48))


@pytest.mark.parametrize(
    ("duration", "window", "stride", "spans"),
    [
        pytest.param(8, 4, 4, [(0, 4), (4, 8)], id="side by side"),
        pytest.param(8, 4, 2, [(0, 4), (2, 6), (4, 8)], id="overlapping"),
        pytest.param(9, 4, 4, [(0, 4), (4, 8), (5, 9)], id="the last is moved back"),
        pytest.param(3, 8, 4, [(0, 3)], id="shorter than the window"),
        pytest.param(8, 8, 1, [(0, 8)], id="exactly the window"),
        pytest.param(8.5, 8, 4, [(0, 8), (0.5, 8.5)], id="a little longer"),
    ],
)
def test_segments_cover_every_moment_and_end_with_the_video(
    duration: float, window: float, stride: float, spans: list[tuple[float, float]]
) -> None:
    seconds = np.arange(0, duration, 0.5).tolist()
    found = segments(seconds, duration, window, stride, step=0.5)
    assert [(a, b) for a, b, _ in found] == spans
    for start, end, inside in found:
        assert [seconds[i] for i in inside] == [s for s in seconds if start <= s < end]
    assert set().union(*(inside for *_, inside in found)) == set(range(len(seconds)))


@pytest.mark.parametrize("step", [0.04, 1.0, 8.0], ids=["looked at 25 times a second", "once a second", "once a window"])
@pytest.mark.parametrize(
    "seconds",
    [
        pytest.param([0.0, 20.0, 40.0, 60.0], id="slides"),
        pytest.param([0.0], id="one picture"),
        pytest.param([0.0, 0.5, 1.0, 1.5, 50.0, 50.5], id="a still in between"),
    ],
)
def test_a_segment_in_which_no_frame_begins_has_the_one_on_screen(seconds: list[float], step: float) -> None:
    found = segments(seconds, 62.0, 8.0, 4.0, step)
    assert len(found) == 15
    for start, end, inside in found:
        begins = [i for i, s in enumerate(seconds) if start <= s < end]
        assert list(inside) == (begins or [max(i for i, s in enumerate(seconds) if s <= start)])


def test_slides_are_scored_and_what_shows_the_same_equally(guard: Guard, tmp_path: Path) -> None:
    """The mend that the command named, more frames a second, could not work: there were no more."""
    slides = write_video(tmp_path / "slides.mp4", frames=4, fps=1, gop=1)
    judge = Guard(guard.model, guard.processor, Sampling(fps=25))
    scores, clip = timeline(judge, slides, window=0.5, stride=0.25)
    assert len(clip.frames) == 4
    assert len(scores.segments) == 15
    assert [s.error for s in scores.segments] == [None] * 15
    assert scores.segments[1].p_visual == pytest.approx(scores.segments[2].p_visual, abs=2e-5)  # both show the first slide alone
    assert scores.segments[1].p_visual != pytest.approx(scores.segments[5].p_visual, abs=1e-4)


def test_one_frame_is_one_segment() -> None:
    assert [(a, list(i)) for a, _, i in segments([0.0], 0.0, 8.0, 4.0, step=1.0)] == [(0.0, [0])]


@pytest.mark.parametrize(
    ("window", "stride", "says"),
    [
        (4, 5, "at most the window"),
        (4, 0, "above 0"),
        (4, -1, "above 0"),
        (math.inf, 1, "stride"),
        (math.nan, 1, "stride"),
        (0.4, 0.4, "no frame between 0.40 s and 0.80 s: the video is looked at every 1.00 s"),
    ],
)
def test_windows_that_leave_something_out_are_refused(guard: Guard, long: Path, window: float, stride: float, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        timeline(guard, long, window=window, stride=stride)


def test_the_video_is_decoded_once(guard: Guard, long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    original = video_code.decode
    monkeypatch.setattr(video_code, "decode", lambda path, *rest: (calls.append(path), original(path, *rest))[1])
    scores, clip = timeline(guard, long, window=5, stride=2.5)
    assert calls == [long]
    assert (len(scores.segments), scores.frames, len(clip.frames)) == (9, 25, 25)


def test_a_segment_scores_as_the_same_seconds_do_alone(guard: Guard, tmp_path: Path) -> None:
    """A clip whose second half is the first one's again: both halves, and the first half as a file, are the same to the model."""
    half = [write_video(tmp_path / f"{n}.mp4", frames=n, gop=1, fps=8) for n in (32, 64)]
    (alone,) = guard.judge([Row("half", "", video=half[0])])
    scores, _ = timeline(guard, half[1], window=4, stride=4)
    assert scores.segments[0].p_visual == pytest.approx(alone["p_visual"], abs=0.02)  # the encoder need not give equal pixels twice
    assert scores.segments[1].p_visual != pytest.approx(alone["p_visual"], abs=1e-4)


def test_batches_and_words_change_nothing(guard: Guard, long: Path) -> None:
    wanted = [s.p_visual for s in timeline(guard, long, window=5, stride=2.5, batch_size=1)[0].segments]
    assert len(set(wanted)) > 5, "scores must depend on the frames for this test to mean anything"
    for text, size in (("", 4), ("", 16), ("What happens in here?", 3)):
        found = [s.p_visual for s in timeline(guard, long, text, window=5, stride=2.5, batch_size=size)[0].segments]
        assert found == pytest.approx(wanted, abs=2e-5)


@pytest.mark.parametrize("name", ["text.mp4", "none.mp4", "cut.mp4", "gone.mp4"])
def test_half_a_video_has_no_score(guard: Guard, media: Path, name: str) -> None:
    with pytest.raises(MediaError):
        timeline(guard, media / name)


def test_a_segment_that_the_processor_refuses_has_the_reason(guard: Guard, long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = guard.probabilities

    def fussy(batch: list[Any]) -> Any:
        if any(item.request.index == 0 and item.clips[0].frames[0].mean() < 4 for item in batch):  # the first segment's black start
            raise ValueError("too\ndark")
        return original(batch)

    monkeypatch.setattr(guard, "probabilities", fussy)
    scores, clip = timeline(guard, long, window=5, stride=5, batch_size=3)
    assert [s.error for s in scores.segments] == ["the processor refused it: too dark"] + [None] * 4
    assert scores.segments[0].p_visual is None
    assert all(s.p_visual is not None for s in scores.segments[1:])
    plot(scores, clip)


def test_a_segment_too_large_for_memory_has_the_reason(guard: Guard, long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, original = timeline(guard, long, window=5, stride=5)[0].segments, guard.probabilities
    sizes: list[int] = []

    def small(batch: list[Any]) -> Any:
        sizes.append(len(batch))
        if len(batch) > 2 or any(item.clips[0].frames[0].mean() < 4 for item in batch):  # the first segment's black start
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(batch)

    monkeypatch.setattr(guard, "probabilities", small)
    found = timeline(guard, long, window=5, stride=5, batch_size=8)[0].segments
    assert sizes == [5, 2, 1, 1, 1, 1, 1]
    assert found[0].error == "out of memory on this one request (CUDA out of memory)"
    assert [s.p_visual for s in found[1:]] == pytest.approx([s.p_visual for s in wanted[1:]], abs=2e-5)


def made(*values: float | None) -> Scores:
    parts = tuple(Segment(2.0 * n, 2.0 * n + 4, p, None if p is not None else "why") for n, p in enumerate(values))
    return Scores("x.mp4", "", 4.0, 2.0, 2.0 * len(values) + 2, 10, parts)


@pytest.mark.parametrize(
    ("values", "maximum", "mean", "peaks"),
    [
        pytest.param([0.1, 0.9, 0.8, 0.2, 0.3], 0.9, 0.46, [1, 4], id="overlapping neighbours are one peak"),
        pytest.param([0.5] * 8, 0.5, 0.5, [0, 2, 4], id="at most three, the first of equals"),
        pytest.param([None, 0.4, None], 0.4, 0.4, [1], id="unscored ones count for nothing"),
        pytest.param([None, None], None, None, [], id="nothing scored"),
        pytest.param([0.0], 0.0, 0.0, [0], id="zero is a score"),
    ],
)
def test_pooling_and_peaks(values: list[float | None], maximum: float | None, mean: float | None, peaks: list[int]) -> None:
    scores = made(*values)
    assert (scores.maximum, scores.peaks) == (maximum, peaks)
    assert scores.mean == pytest.approx(mean)
    told = scores.as_json()
    assert (told["p_visual_max"], told["peaks"], len(told["segments"])) == (maximum, peaks, len(values))
    json.dumps(told, allow_nan=False)


def test_the_plot_shows_the_frames_at_the_peaks(guard: Guard, long: Path, tmp_path: Path) -> None:
    scores, clip = timeline(guard, long, window=5, stride=5)
    figure = plot(scores, clip, threshold=0.25)
    curve, *pictures = figure.axes
    assert list(curve.lines[0].get_ydata()) == [s.p_visual for s in scores.segments]
    assert len(pictures) == len(scores.peaks) == 3
    for axes, i in zip(pictures, sorted(scores.peaks), strict=True):
        shown = axes.images[0].get_array()
        middle = (scores.segments[i].start + scores.segments[i].end) / 2
        wanted = min(range(len(clip.seconds)), key=lambda n: abs(clip.seconds[n] - middle))
        assert np.array_equal(shown, clip.frames[wanted])
    figure.savefig(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize("values", [[None, None], [0.3], [0.2, None, 0.4]])
def test_any_scores_can_be_drawn(guard: Guard, media: Path, tmp_path: Path, values: list[float | None]) -> None:
    clip = video_code.decode(media / "a.mp4", Sampling())
    plot(made(*values), clip).savefig(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").stat().st_size > 5000


def test_the_command(alarm: Path, guard: Guard, long: Path, media: Path, tmp_path: Path) -> None:
    base = ["guard", "timeline", "--model", str(alarm), "--device", "cpu"]
    result = CliRunner().invoke(app, [*base, "--video", str(long), "--window", "5", "--stride", "5", "--plot", str(tmp_path / "a.png")])
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    wanted = timeline(guard, long, window=5, stride=5)[0].as_json()
    assert [s["p_visual"] for s in told["segments"]] == pytest.approx([s["p_visual"] for s in wanted["segments"]], abs=2e-5)
    assert (tmp_path / "a.png").is_file()
    broken = CliRunner().invoke(app, [*base, "--video", str(media / "cut.mp4"), "--out", str(tmp_path / "out.json")])
    assert broken.exit_code == 2
    assert "truncated, 1 of 40 frames" in broken.stderr
    assert not (tmp_path / "out.json").exists()


def test_a_plot_that_cannot_be_saved_leaves_the_scores(alarm: Path, media: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.png")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    args = ["--video", str(media / "a.mp4"), "--plot", str(tmp_path / "a.png"), "--out", str(tmp_path / "a.json")]
    result = CliRunner().invoke(app, ["guard", "timeline", "--model", str(alarm), "--device", "cpu", *args])
    assert (result.exit_code, result.stderr.strip().splitlines()[-1]) == (2, "videosafety: a.png: No space left on device")
    assert json.loads((tmp_path / "a.json").read_text())["segments"]
