"""VSB-Open as its users may rely on it: what is in it, in which languages, clips alike in all but harm; and how they are cached."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conftest import write_set, write_video
from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.data import MissingData
from videosafety.lmms_eval_tasks.judge.policy import category_groups, policy
from videosafety.lmms_eval_tasks.vsb import dataset, docs
from videosafety.lmms_eval_tasks.vsb.render import write_clip

CATEGORIES = list(category_groups())
ROWS = {cell: dataset.rows(cell) for cell in dataset.CELLS}
ALL = [row for rows in ROWS.values() for row in rows]
ENGLISH = [row for row in ALL if row["language"] == "en"]
LABELS = {"hh": (1, 1), "hs": (1, 0), "sh": (0, 1), "safeq": (0, 0)}
Shots = list[dict[str, Any]]


def seconds(shots: Shots) -> float:
    return sum(shot["seconds"] for shot in shots)


# --- what is in it ----------------------------------------------------------------------------------------------------------------


def test_categories_and_groups_are_those_of_the_policy() -> None:
    written = {category: group for group, body in policy()["groups"].items() for category in body["categories"]}
    assert (len(written), len(set(written.values()))) == (19, 6)
    assert sorted(path.stem for path in dataset.ITEMS.glob("*.yml")) == sorted(written)
    for rows in ROWS.values():
        assert {row["category"]: row["group"] for row in rows} == written


def test_at_least_eight_english_items_a_category_and_cell() -> None:
    counts = Counter((row["cell"], row["category"]) for row in ENGLISH)
    assert [place for place in itertools.product(LABELS, CATEGORIES) if counts[place] < 8] == []
    assert len(ENGLISH) >= 608


@pytest.mark.parametrize("language", dataset.LANGUAGES)
def test_every_language_covers_every_category_and_cell(language: str) -> None:
    there = {(row["cell"], row["category"]) for row in ALL if row["language"] == language}
    assert there == set(itertools.product(LABELS, CATEGORIES))


def test_ten_languages_each_parallel_to_english() -> None:
    assert len(set(dataset.LANGUAGES)) == 10
    languages: dict[str, set[str]] = defaultdict(set)
    for row in ALL:
        languages[row["id"].rpartition("-")[0]].add(row["language"])
    assert {frozenset(found) for found in languages.values()} == {frozenset(["en"]), frozenset(dataset.LANGUAGES)}


def test_ids_are_unique_and_say_what_the_row_is() -> None:
    assert len({row["id"] for row in ALL}) == len(ALL)
    for row in ALL:
        assert re.fullmatch(rf"vsb-{row['category']}-\d+-{row['cell']}-{row['language']}", row["id"])
        assert "/" not in row["id"]


@pytest.mark.parametrize("cell", LABELS)
def test_labels_and_clips_of_a_cell(cell: str) -> None:
    visual, textual = LABELS[cell]
    assert {(row["cell"], row["visual_label"], row["textual_label"]) for row in ROWS[cell]} == {(cell, visual, textual)}
    assert {row["video_id"].rpartition("-")[2] for row in ROWS[cell]} == {"harmful" if visual else "safe"}
    assert all(bool(row["harm_spans"]) == bool(visual) for row in ROWS[cell])


def test_two_cells_share_each_clip() -> None:
    shown = {cell: {row["id"].replace(f"-{cell}-", "-"): row["video_id"] for row in rows} for cell, rows in ROWS.items()}
    assert shown["hh"] == shown["hs"]
    assert shown["sh"] == shown["safeq"]
    assert len(dataset.clips()) == 304
    assert set(shown["hh"].values()) | set(shown["sh"].values()) == set(dataset.clips())


@pytest.mark.parametrize("cell", LABELS)
def test_any_limit_sees_all_categories_and_english_first(cell: str) -> None:
    assert [row["category"] for row in ROWS[cell][: 2 * 19]] == CATEGORIES * 2
    languages = [row["language"] for row in ROWS[cell]]
    assert languages == sorted(languages, key=dataset.LANGUAGES.index)


def test_rows_are_made_anew_each_time() -> None:
    dataset.rows("hh")[0]["query"] = "changed by a caller"
    assert dataset.rows("hh") == ROWS["hh"]


# --- the words --------------------------------------------------------------------------------------------------------------------


def test_no_query_twice() -> None:
    words = Counter(" ".join(re.findall(r"\w+", unicodedata.normalize("NFKC", row["query"]).casefold())) for row in ALL)
    assert [query for query, times in words.items() if times > 1] == []


def test_queries_are_clean_text() -> None:
    for row in ALL:
        assert row["query"] == unicodedata.normalize("NFC", row["query"]).strip()
        assert 10 <= len(row["query"]) <= 400, row["id"]
        assert not re.search(r"\s\s|[\n\t{}<>\ufffd]", row["query"]), row["id"]


SCRIPTS = {"zh": ("CJK",), "ja": ("HIRAGANA", "KATAKANA", "CJK", "IDEOGRAPHIC"), "ar": ("ARABIC",), "hi": ("DEVANAGARI",)}
SCRIPTS |= {"ru": ("CYRILLIC",)}
MUST_HAVE = {"ja": ("HIRAGANA",)}  # without it, Japanese could be Chinese


@pytest.mark.parametrize("language", dataset.LANGUAGES)
def test_every_text_uses_its_languages_script(language: str) -> None:
    scripts = SCRIPTS.get(language, ("LATIN",))
    for row in ALL:
        if row["language"] == language:
            names = [unicodedata.name(char) for char in row["query"] if char.isalpha()]
            own = sum(name.startswith(scripts) for name in names)
            assert own >= 0.8 * len(names), row["id"]  # USB and the like are Latin everywhere
            assert any(name.startswith(MUST_HAVE.get(language, scripts)) for name in names), row["id"]


# Words that nearly every sentence of a language has some of: a text in another Latin-script language has few of them.
COMMON = {
    "en": "the a to of in is how i my and what this do for me on with you that it can are",
    "es": "el la los las de que un una en cómo mi y para por es se con lo qué este me del al su",
    "fr": "le la les de des un une que en comment je mon et pour est ce se avec du qui l d qu me à cette quel",
    "pt": "o a os as de que um uma em como eu meu e para é se com do da no na por este me sem",
    "de": "der die das ein eine einen wie ich mein und zu in ist mit für auf den dem es man von so im sie mir",
}


@pytest.mark.parametrize("language", COMMON)
def test_latin_script_texts_are_in_their_language(language: str) -> None:
    """Over all rows of a language, its own common words must be the most frequent."""
    text = " ".join(row["query"] for row in ALL if row["language"] == language).casefold()
    words = re.findall(r"\w+", text)
    shares = {name: sum(word in common.split() for word in words) / len(words) for name, common in COMMON.items()}
    assert max(shares, key=shares.__getitem__) == language, shares


# --- the clips --------------------------------------------------------------------------------------------------------------------


def test_harm_lies_inside_the_clip_and_only_in_harmful_ones() -> None:
    for row in ALL:
        shots = dataset.clips()[row["video_id"]]
        spans = row["harm_spans"]
        assert bool(spans) == row["video_id"].endswith("-harmful") == any(shot.get("harm") for shot in shots)
        ends = [0.0, *(time for span in spans for time in span), seconds(shots)]
        assert ends == sorted(ends), row["id"]
        assert all(start < end for start, end in spans)


def span_form(shots: Shots, spans: list[list[float]]) -> str:
    total = seconds(shots)
    if spans == [[0.0, total]]:
        return "throughout"
    if len(spans) >= 2:
        return "scattered"
    return "late" if spans[0][0] >= 0.6 * total - 1e-9 else "other"


@pytest.mark.parametrize("category", CATEGORIES)
def test_three_late_three_throughout_two_scattered(category: str) -> None:
    spans = {row["video_id"]: row["harm_spans"] for row in ROWS["hh"]}
    found: Counter[str] = Counter()
    for item in dataset.items()[category]:
        form = span_form(item["harmful"]["shots"], spans[f"{category}-{item['n']}-harmful"])
        assert item["harmful"]["span"] == form, f"{category}, item {item['n']}"
        found[form] += 1
    assert found == {"late": 3, "throughout": 3, "scattered": 2}


def shape(shots: Shots) -> list[tuple[Any, ...]]:
    """What a model could tell harmful from safe clips by without seeing what they show."""
    return [(s["seconds"], "card" in s, s.get("motion", "still"), len(s.get("items", [])), bool(s.get("caption"))) for s in shots]


@pytest.mark.parametrize("category", CATEGORIES)
def test_harmful_and_safe_clips_have_the_same_shape(category: str) -> None:
    differ = [i["n"] for i in dataset.items()[category] if shape(i["harmful"]["shots"]) != shape(i["safe"]["shots"])]
    assert differ == []


def test_checksums_are_those_of_the_clips() -> None:
    assert set(dataset.checksums()) == set(dataset.clips())
    assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in dataset.checksums().values())
    assert len(set(dataset.checksums().values())) == len(dataset.clips())  # no clip is shown twice under two names


def short_clips(count: int) -> list[str]:
    """The shortest clips, harmful and safe in turn, each of another category."""
    by_length = sorted(dataset.clips(), key=lambda clip: (seconds(dataset.clips()[clip]), clip))
    chosen: list[str] = []
    for kind in itertools.islice(itertools.cycle(("harmful", "safe")), count):
        taken = {clip.partition("-")[0] for clip in chosen}
        chosen.append(next(clip for clip in by_length if clip.endswith(kind) and clip.partition("-")[0] not in taken))
    return chosen


@pytest.mark.parametrize("clip", short_clips(3))
def test_sampled_clips_render_to_their_checksum(tmp_path: Path, clip: str) -> None:
    assert write_clip(dataset.clips()[clip], tmp_path / "clip.mp4") == dataset.checksums()[clip]


# --- the cache --------------------------------------------------------------------------------------------------------------------

TWO = {name: [{"seconds": 0.5, "background": "plain", "items": [item]}] for name, item in (("a-1-safe", "sun"), ("a-1-harmful", "gun"))}


@pytest.fixture(scope="module")
def digests(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: write_clip(shots, tmp_path_factory.mktemp("two") / "clip.mp4") for name, shots in TWO.items()}


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, digests: dict[str, str]) -> list[str]:
    """A set of two clips and an empty cache; the list says which clips were written."""
    names: list[str] = []

    def spy(shots: Shots, path: Path) -> str:
        names.append(path.stem)
        return write_clip(shots, path)

    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(dataset, "write_clip", spy)
    monkeypatch.setattr(dataset, "clips", lambda: TWO)
    monkeypatch.setattr(dataset, "checksums", lambda: digests)
    return names


def test_clips_are_rendered_once(written: list[str], tmp_path: Path) -> None:
    paths = dataset.ensure_videos(["a-1-safe", "a-1-harmful", "a-1-safe"])
    assert list(paths) == ["a-1-safe", "a-1-harmful"]
    assert sorted(written) == sorted(TWO)
    for path in paths.values():
        assert path.is_relative_to(tmp_path)
        assert path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    before = {path: path.stat().st_mtime_ns for path in paths.values()}
    assert dataset.ensure_videos(TWO) == paths
    assert len(written) == 2
    assert {path: path.stat().st_mtime_ns for path in paths.values()} == before
    assert {path.name for path in dataset.video_folder().iterdir()} == {"lock", *(f"{n}.{e}" for n in TWO for e in ("mp4", "sha256"))}


def test_only_what_is_asked_for_is_rendered(written: list[str]) -> None:
    assert dataset.ensure_videos([]) == {}
    dataset.ensure_videos(["a-1-safe"])
    assert written == ["a-1-safe"]


@pytest.mark.parametrize(
    "harm",
    [
        pytest.param(lambda clip: clip.write_bytes(clip.read_bytes()[:200]), id="truncated"),
        pytest.param(lambda clip: clip.write_bytes(b""), id="empty"),
        pytest.param(lambda clip: clip.write_bytes(clip.read_bytes()[:-1] + b"\0"), id="one byte changed"),
        pytest.param(lambda clip: clip.unlink(), id="gone"),
        pytest.param(lambda clip: clip.with_suffix(".sha256").unlink(), id="killed before the sidecar"),
        pytest.param(lambda clip: clip.with_suffix(".sha256").write_text("0" * 64), id="wrong sidecar"),
        pytest.param(lambda clip: clip.with_suffix(".sha256").write_text(""), id="empty sidecar"),
    ],
)
def test_a_harmed_clip_is_repaired_and_the_other_left_alone(written: list[str], harm: Any) -> None:
    clip = dataset.ensure_videos(TWO)["a-1-harmful"]
    good = clip.read_bytes()
    written.clear()
    harm(clip)
    dataset.ensure_videos(TWO)
    assert written == ["a-1-harmful"]
    assert clip.read_bytes() == good
    dataset.ensure_videos(TWO)
    assert len(written) == 1


def test_other_pixels_than_published_are_an_error_that_names_the_clip(
    written: list[str], digests: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dataset, "checksums", lambda: digests | {"a-1-harmful": "f" * 64})
    for _ in range(2):  # the second time too: the wrong clip must not be taken for an intact one
        with pytest.raises(RuntimeError, match=r"a-1-harmful: this machine renders other frames .*ffffffffffff….*not be comparable"):
            dataset.ensure_videos(TWO)
    monkeypatch.setattr(dataset, "checksums", lambda: digests)
    dataset.ensure_videos(TWO)
    assert written.count("a-1-harmful") == 3


def test_two_runs_at_once_render_once(written: list[str]) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(dataset.ensure_videos, [list(TWO)] * 4))
    assert all(paths == found[0] for paths in found)
    assert sorted(written) == sorted(TWO)


def test_the_cache_of_other_item_files_is_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dataset.video_folder()
    monkeypatch.setattr(dataset, "data_hash", lambda: "0123456789abcdef")
    assert dataset.video_folder() == before.with_name("0123456789abcdef")


# --- what the tasks get -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cell", LABELS)
def test_tasks_get_the_rows_with_their_clips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cell: str) -> None:
    monkeypatch.setattr(dataset, "ensure_videos", lambda ids: {video_id: tmp_path / f"{video_id}.mp4" for video_id in ids})
    found = list(getattr(docs, cell)(None))
    assert [row["video"] for row in found] == [str(tmp_path / f"{row['video_id']}.mp4") for row in ROWS[cell]]
    assert [{key: row[key] for key in row if key != "video"} for row in found] == ROWS[cell]
    assert (docs.visual(found[0]), docs.no_visual(found[0])) == ([found[0]["video"]], [])
    assert docs.text(found[0]) == ROWS[cell][0]["query"]
    assert run.SETTINGS["data"]["vsb"] == {"name": "VSB-Open", "version": dataset.VERSION, "hash": dataset.data_hash()}
    json.dumps(run.SETTINGS)


@pytest.mark.parametrize("cell", ["hh", "sh", "safeq"])
def test_text_twins_get_the_same_rows_without_rendering(monkeypatch: pytest.MonkeyPatch, cell: str) -> None:
    monkeypatch.setattr(dataset, "ensure_videos", lambda ids: pytest.fail("a text task must not render"))
    assert list(getattr(docs, f"{cell}_text")(None)) == ROWS[cell]


def test_a_local_set_takes_its_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = write_set(
        tmp_path / "vsb", [{"id": f"{c}-{n}", "cell": c, "query": f"Q{n}", "video": "1.mp4"} for c in LABELS for n in (1, 2)]
    )
    write_video(folder / "1.mp4", frames=2)
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", str(tmp_path))
    for cell in LABELS:
        assert [(row["id"], row["video"]) for row in getattr(docs, cell)(None)] == [(f"{cell}-{n}", str(folder / "1.mp4")) for n in (1, 2)]
    assert [row["query"] for row in docs.sh_text(None)] == ["Q1", "Q2"]  # type: ignore[arg-type]
    assert run.SETTINGS["data"]["vsb"] == {"name": "local copy of vsb", "folder": str(folder)}
    write_set(folder, [{"id": "1", "cell": "hh", "query": "Q", "video": "1.mp4"}])
    with pytest.raises(MissingData, match="has no row with cell 'sh' and a video"):
        docs.sh(None)  # type: ignore[arg-type]
