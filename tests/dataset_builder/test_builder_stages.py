"""Stages one by one, on rows of their own: what they keep, what they turn away, and why."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from stage_cases import HARMFUL, SAFE, asking, config, video_row
from test_video import turned
from toy_clips import write_clip

from videosafety.dataset_builder import filter as filtering
from videosafety.dataset_builder import label, shots
from videosafety.dataset_builder.config import Labels, Shots
from videosafety.dataset_builder.rows import Bundle, Rejected, through
from videosafety.dataset_builder.servers import Answer, AskFailed, fields_of
from videosafety.lmms_eval_tasks.video import Sampling, content_hash, decode, read_timeline

# --- shots ------------------------------------------------------------------------------------------------------------------------


def test_a_cut_is_where_the_colours_change_at_once(tmp_path: Path) -> None:
    frames = decode(write_clip(tmp_path / "three.mp4", seed=1, shots=3, seconds=2.0), Sampling(8.0, 500, 64 * 64)).frames
    assert shots.cuts(frames, 0.3) == [16, 32]
    assert shots.cuts(frames[:16], 0.3) == []
    picture = np.random.default_rng(0).integers(0, 256, (16, 16, 3))
    fade = np.stack([picture * n // 40 for n in range(41)]).astype(np.uint8)
    assert shots.cuts(fade, 0.3) == [], "a fade is no cut"


@pytest.mark.parametrize(
    ("start", "end", "longest", "expected"),
    [
        (0.0, 10.0, 60.0, [(0.0, 10.0)]),
        (0.0, 60.0, 60.0, [(0.0, 60.0)]),
        (0.0, 90.0, 60.0, [(0.0, 45.0), (45.0, 90.0)]),
        (5.0, 11.0, 2.0, [(5.0, 7.0), (7.0, 9.0), (9.0, 11.0)]),
    ],
)
def test_long_shots_are_cut_into_the_fewest_equal_parts(start: float, end: float, longest: float, expected: list[Any]) -> None:
    assert np.array(shots.pieces(start, end, longest)) == pytest.approx(np.array(expected))


def test_nothing_of_the_next_shot_is_in_a_shot() -> None:
    seconds = [i / 4 for i in range(12)]
    assert shots.bounds(seconds, [4, 8], 3.0, Shots()) == [(0.0, 0.75), (1.0, 1.75), (2.0, 3.0)]


def test_a_video_becomes_clips_that_are_the_same_bytes_each_time(tmp_path: Path) -> None:
    source = write_clip(tmp_path / "two.mp4", seed=2, shots=2, seconds=2.0)
    made = []
    for name in ("one", "two"):
        settings = config(tmp_path, out=name)
        bundle = Bundle("k", [video_row(source)])
        for stage, make in (("inspect", shots.inspect), ("shots", shots.shots), ("filter", filtering.measure)):
            bundle = through(bundle, stage, make(settings))
        assert not bundle.rejected
        made.append(bundle.rows)
    assert [row["id"] for row in made[0]] == [row["id"] for row in made[1]]
    assert len({row["id"] for row in made[0]}) == 2
    for ours, theirs in zip(*made, strict=True):
        assert content_hash(ours["file"]) == content_hash(theirs["file"]) == ours["provenance"]["clip_sha256"]
        start, end = ours["provenance"]["shot"]
        assert read_timeline(Path(ours["file"])).duration == pytest.approx(end - start, abs=0.13)
        assert shots.cuts(decode(ours["file"], Sampling(8.0)).frames, 0.3) == []


def first_shot(folder: Path, source: Path, start: float = 0.0) -> np.ndarray:
    """The frames of what is written of [start, end) of a source."""
    clip = folder / f"{source.name}-shot.mp4"
    shots.write_clip(source, clip, start, 2.0, 640 * 360)
    return decode(clip, Sampling(8.0)).frames


def test_a_shot_of_a_turned_video_is_upright(tmp_path: Path) -> None:
    upright = write_clip(tmp_path / "upright.mp4", seed=4, seconds=2.0)
    wanted = np.rot90(first_shot(tmp_path, upright), -1, axes=(1, 2))
    found = first_shot(tmp_path, turned(write_clip(tmp_path / "turned.mp4", seed=4, seconds=2.0), (0, 1, -1, 0)))
    assert found.shape == wanted.shape == (16, 96, 64, 3)
    assert np.abs(found.astype(int) - wanted).mean() < 3, "chroma is halved after the turn"


def test_a_shot_of_a_transport_stream_has_its_first_frames(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "whole.ts", seed=4, shots=2, seconds=1.0)
    assert len(first_shot(tmp_path, whole, 1.0)) == 8


def hostile(folder: Path, name: str) -> Path:
    good = write_clip(folder / "good.mp4", seed=3).read_bytes()
    file = folder / f"{name}.mp4"
    if name == "truncated":
        file.write_bytes(good[: len(good) // 2])
    elif name == "text":
        file.write_text("I am not a video")
    elif name == "empty":
        file.write_bytes(b"")
    elif name == "playlist":
        file.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n")
    elif name == "long":
        write_clip(file, seed=4, seconds=14.0)
    elif name == "still":
        write_clip(file, seed=5, seconds=0.125)
    elif name == "heavy":
        file.write_bytes(good + b"\0" * 100_000)
    return file


@pytest.mark.parametrize(
    ("name", "stage", "reason"),
    [
        ("truncated", "inspect", "truncated.mp4"),
        ("text", "inspect", "not a readable video"),
        ("empty", "inspect", "the file is empty"),
        ("playlist", "inspect", "not a readable video"),
        ("missing", "inspect", "no such file"),
        ("long", "inspect", "14 s are over the limit of 10 s"),
        ("heavy", "inspect", "over the limit of 90,000"),
        ("still", "shots", "under the 1 s wanted"),
    ],
)
def test_hostile_media_are_turned_away_with_a_reason(tmp_path: Path, name: str, stage: str, reason: str) -> None:
    from videosafety.dataset_builder.config import Limits

    settings = config(tmp_path, limits=Limits(max_bytes=90_000, max_seconds=10.0))
    bundle = Bundle("k", [video_row(hostile(tmp_path, name))])
    for step, make in (("inspect", shots.inspect), ("shots", shots.shots), ("filter", filtering.measure)):
        bundle = through(bundle, step, make(settings))
    assert not bundle.rows
    (rejected,) = bundle.rejected
    assert (rejected.stage, rejected.transient) == (stage, False)
    assert reason in rejected.reason
    assert str(tmp_path) not in rejected.reason, "a report must not tell where things lie"


# --- filter -----------------------------------------------------------------------------------------------------------------------


def test_still_pictures_have_no_motion_and_moving_ones_do() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    assert filtering.motion(filtering.grey(np.stack([picture] * 5))) == 0.0
    assert filtering.motion(filtering.grey(np.stack([np.roll(picture, 9 * n, 1) for n in range(5)]))) > 0.005
    assert filtering.motion(filtering.grey(picture[None])) == 0.0


def test_a_copy_is_near_and_another_clip_is_far() -> None:
    chance = np.random.default_rng(1)
    small = chance.integers(0, 256, (2, 6, 8, 3))
    one, other = (np.asarray(Image.fromarray(part.astype(np.uint8)).resize((96, 72))) for part in small)
    prints = [filtering.perceptual_hash(filtering.grey(np.stack([np.roll(p, 4 * n, 1) for n in range(6)]))) for p in (one, other)]
    noisy = np.clip(one.astype(int) + chance.integers(-4, 5, one.shape), 0, 255).astype(np.uint8)
    copy = filtering.perceptual_hash(filtering.grey(np.stack([np.roll(noisy[::2, ::2], 2 * n, 1) for n in range(6)])))
    assert np.bitwise_count(prints[0] ^ copy).sum() <= 24
    assert np.bitwise_count(prints[0] ^ prints[1]).sum() > 60


def flipped(print_: np.ndarray, bits: list[int]) -> np.ndarray:
    found = np.unpackbits(print_)
    found[bits] ^= 1
    return np.packbits(found)


def test_clusters_are_those_of_all_pairs() -> None:
    chance = np.random.default_rng(2)
    base = chance.integers(0, 256, (30, 32)).astype(np.uint8)
    near = [flipped(base[i], chance.choice(256, 12, replace=False).tolist()) for i in range(10)]
    chain = [flipped(near[0], chance.choice(256, 12, replace=False).tolist())]
    prints = np.concatenate([base, near, chain, base[:3]])
    found = filtering.clusters(prints, 15)
    expected = np.arange(len(prints))
    for _ in range(4):  # closed under chains
        for i, j in itertools.combinations(range(len(prints)), 2):
            if np.bitwise_count(prints[i] ^ prints[j]).sum() <= 15:
                expected[j] = expected[i] = min(expected[i], expected[j])
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) == 30
    assert filtering.clusters(np.zeros((0, 32), np.uint8), 15).tolist() == []
    assert filtering.clusters(np.zeros((5000, 32), np.uint8), 15).tolist() == [0] * 5000


# --- labels -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("votes", "hold", "majority", "first"),
    [
        (["safe"], 0, 0, 0),
        (["harmful", "harmful"], 1, 1, 1),
        (["harmful", "safe"], None, None, 1),
        (["safe", "harmful", "harmful"], None, 1, 0),
        (["unscored", "harmful"], 1, 1, 1),
        (["unscored", "harmful", "safe"], None, None, None),
        (["unscored", "unscored"], None, None, None),
        ([], None, None, None),
    ],
)
def test_what_the_votes_come_to(votes: list[str], hold: int | None, majority: int | None, first: int | None) -> None:
    said = [{"label": vote} for vote in votes]
    assert (label.decide(said, "hold"), label.decide(said, "majority"), label.decide(said, "first")) == (hold, majority, first)


def test_agreement_counts_pairs_of_votes_and_is_undefined_below_two() -> None:
    agreed = {
        ("safe",): None,
        ("safe", "safe"): 1.0,
        ("safe", "harmful"): 0.0,
        ("safe", "safe", "harmful"): 1 / 3,
        ("safe", "unscored"): None,
    }
    for votes, share in agreed.items():
        assert label.agreement([{"label": vote} for vote in votes]) == (share if share is None else pytest.approx(share))


@pytest.mark.parametrize(
    ("texts", "outcome", "calls"),
    [
        ([SAFE], "safe", 1),
        ([f"<think>hm</think>```json\n{HARMFUL}\n```"], "harmful", 1),
        (["nonsense", SAFE], "safe", 2),
        (["nonsense"], "unscored", 2),
        (['{"visual": "maybe", "category": "weapons"}'], "unscored", 2),
        (['{"visual": "safe", "visual": "harmful", "category": "theft"}'], "unscored", 2),
        (['{"visual": "safe", "category": "nothing of ours"}'], "unscored", 2),
        (["[]"], "unscored", 2),
        ([AskFailed("down")], "unscored", 1),
        ([Rejected("will not say")], "unscored", 2),
    ],
)
def test_a_judge_votes_or_is_unscored_and_nothing_else(tmp_path: Path, texts: list[Any], outcome: str, calls: int) -> None:
    ask = asking(*texts)
    settings = config(tmp_path, labels=Labels([label.Judge("a", 0)]))
    row = video_row(tmp_path / "x.mp4")
    vote = label.vote(settings, ask, settings.labels.judges[0], row)
    assert (vote["label"], len(ask.calls)) == (outcome, calls)
    assert bool(vote["detail"]) == (outcome == "unscored")
    found = through(Bundle("k", [row]), "label", label.label(settings, ask))
    if outcome == "unscored":
        (held,) = found.rejected
        assert held.transient == isinstance(texts[0], AskFailed)
        assert (held.row is None) == held.transient, "a reviewer sees what no judge can say, not what a judge still may"
    else:
        assert [r["visual_label"] for r in found.rows] == [label.WORDS.index(outcome)]


@pytest.mark.parametrize("text", ['{"a": "\\ud800"}', '{"a": true}', '{"a": null}', "[1]", "{", "", "[" * 100_000])
def test_nonsense_is_a_reason_and_never_an_error(text: str) -> None:
    with pytest.raises(Rejected):
        fields_of(Answer(text, "m"), {"a": str})
