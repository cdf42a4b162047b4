"""vsb_temporal as recipes: the variants differ in what their names say and in nothing else; rows say what the model's sampling shows."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.video import Sampling
from videosafety.lmms_eval_tasks.vsb import dataset as vsb
from videosafety.lmms_eval_tasks.vsb_temporal import docs, recipes
from videosafety.lmms_eval_tasks.vsb_temporal.recipes import COUNTS, NAMES, PLACES, VARIANTS, cut, items, shots

FOLDER = Path(recipes.__file__).parent
DEFAULT = Sampling()


@pytest.fixture(autouse=True)
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(run.SETTINGS, "model", raising=False)


def sources(name: str) -> list[Counter[str]]:
    return [Counter(source for source, _ in cut(item, name).frames) for item in items()]


def test_every_task_has_its_yaml_its_facts_and_its_place_in_the_group() -> None:
    names = {f"vsb_temporal_{v}_{n}" for v in ("motion", "still", "shuffled", "benign") for n in (1, 4, 8, 16, 32, 64)}
    names |= {f"vsb_temporal_{p}" for p in ("early", "late", "scattered", "brief", "subtitle", "text")}
    assert {f"vsb_temporal_{name}" for name in NAMES} == names
    assert {file.stem for file in FOLDER.glob("*.yaml")} == names | {"vsb_temporal"}
    facts = yaml.safe_load((FOLDER / "dataset.yml").read_text(encoding="utf-8"))["tasks"]
    assert {name: fact["rows"] for name, fact in facts.items()} == dict.fromkeys(names, len(items()))
    group = (FOLDER / "vsb_temporal.yaml").read_text(encoding="utf-8")
    assert all(f" {name}," in group for name in names)


def test_two_items_of_every_category_the_first_of_all_before_the_second_of_any() -> None:
    categories = list(vsb.category_groups())
    assert [item.category for item in items()] == categories * 2
    harmful_queries = {row["id"]: row["query"] for row in vsb.rows("hh")}
    spans = {(c, i["n"]): i["harmful"]["span"] for c, rows in vsb.items().items() for i in rows}
    for item in items():
        assert item.query == harmful_queries[f"vsb-{item.id}-hh-en"]
        assert spans[item.category, item.number] == "throughout"


@pytest.mark.parametrize("count", COUNTS)
def test_the_four_variants_differ_in_one_thing_each(count: int) -> None:
    for item in items():
        motion, still, mixed, benign = (cut(item, f"{variant}_{count}") for variant in VARIANTS)
        assert {plan.rate for plan in (motion, still, mixed, benign)} == {1}
        assert len(motion.frames) == len(still.frames) == len(mixed.frames) == len(benign.frames) == count
        assert motion.frames == tuple(sorted(set(motion.frames)))  # in order, none twice
        assert Counter(mixed.frames) == Counter(motion.frames)
        after = set(itertools.pairwise(motion.frames))
        assert not after & set(itertools.pairwise(mixed.frames))  # no frame is followed by the one that followed it
        assert set(still.frames) == set(cut(item, "motion_1").frames)
        assert benign.frames == tuple(("safe", i) for _, i in motion.frames)
        assert {source for source, _ in motion.frames} == {"harmful"}


def test_the_order_of_shuffled_frames_is_fixed() -> None:
    """A change of it changes published results: raise the version."""
    assert [i for _, i in cut(items()[0], "shuffled_8").frames] == [10, 2, 42, 34, 58, 50, 26, 18]


@pytest.mark.parametrize(
    ("name", "spans"),
    [
        ("early", [[0, 8]]),
        ("late", [[24, 32]]),
        ("scattered", [[t, t + 1] for t in range(2, 32, 4)]),
        ("brief", [[t + 0.125, t + 0.5] for t in range(2, 32, 4)]),
        ("subtitle", [[0, 32]]),
        ("benign_32", []),
        ("motion_4", [[0, 4]]),
    ],
)
def test_harm_is_where_the_name_says(name: str, spans: list[list[float]]) -> None:
    for item in items():
        assert cut(item, name).harm_spans() == spans
        assert cut(item, name).seconds == (4 if name == "motion_4" else 32)


def test_early_late_and_scattered_hold_the_same_harm_and_as_much_of_it() -> None:
    for item in items():
        harm = {name: [f for f in cut(item, name).frames if f[0] == "harmful"] for name in ("early", "late", "scattered")}
        assert harm["early"] == harm["late"] == harm["scattered"] == list(cut(item, "motion_8").frames)
        flashes = [f for f in cut(item, "brief").frames if f[0] == "harmful"]
        assert flashes == [f for f in harm["scattered"] for _ in range(3)]
    assert sources("early") == sources("late") == sources("scattered") == [Counter(safe=24, harmful=8)] * len(items())


@pytest.mark.parametrize(
    "how", [Sampling(), Sampling(fps=2), Sampling(max_frames=32), Sampling(max_frames=16), Sampling(fps=0.5), Sampling(max_frames=1)]
)
def test_uniform_sampling_misses_brief_harm(how: Sampling) -> None:
    for item in items():
        assert {source for source, _ in docs.shown(cut(item, "brief"), how)} == {"safe"}


def test_brief_harm_is_there_for_who_looks_closely_and_by_default_equals_the_harmless_clip() -> None:
    for item in items():
        plan = cut(item, "brief")
        assert len({f for f in docs.shown(plan, Sampling(fps=4)) if f[0] == "harmful"}) == 8
        assert docs.shown(plan, DEFAULT) == list(cut(item, "benign_32").frames)


@pytest.mark.parametrize("fps", [1, 2, 30])
@pytest.mark.parametrize("count", COUNTS)
def test_every_frame_reaches_the_model_at_one_frame_a_second_or_more(count: int, fps: float) -> None:
    for variant in VARIANTS:
        plan = cut(items()[0], f"{variant}_{count}")
        assert docs.shown(plan, Sampling(fps=fps)) == list(plan.frames)


def test_subtitles_alone_carry_the_harm() -> None:
    for item in items():
        for drawn, safe, harmful in zip(*(shots(item, source) for source in ("subtitle", "safe", "harmful")), strict=True):
            assert drawn | {"caption": None} == safe | {"caption": None}
            assert drawn["caption"] == harmful["caption"] != safe["caption"]
            assert (harmful["seconds"], harmful["motion"], len(harmful["items"])) == (safe["seconds"], safe["motion"], len(safe["items"]))


def test_rows_say_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def facts(name: str) -> set[tuple[Any, ...]]:
        keys = ("variant", "frames", "distinct_frames", "harm_frames", "seconds", "pixels", "cell", "textual_label", "visual_label")
        return {tuple(row.get(key) for key in keys) for row in docs.rows(name)}

    pixels = 448 * 336
    assert facts("motion_16") == {("motion", 16, 16, 16, 16.0, pixels, "hh", 1, 1)}
    assert facts("still_64") == {("still", 64, 1, 64, 64.0, pixels, "hh", 1, 1)}
    assert facts("benign_8") == {("benign", 8, 8, 0, 8.0, pixels, "sh", 1, 0)}
    assert facts("late") == {("late", 32, 32, 8, 32.0, pixels, "hh", 1, 1)}
    assert facts("brief") == {("brief", 32, 32, 0, 32.0, pixels, "hh", 1, 1)}
    assert facts("text") == {("text", 0, 0, 0, 0.0, 0, "hh", 1, None)}
    monkeypatch.setitem(run.SETTINGS, "model", {"fps": 1.0, "max_frames": 32, "max_pixels": 224 * 168})
    assert facts("motion_64") == {("motion", 32, 32, 32, 64.0, 224 * 168, "hh", 1, 1)}
    assert facts("still_64") == {("still", 32, 1, 32, 64.0, 224 * 168, "hh", 1, 1)}


def test_rows_of_an_item_are_one_cluster_and_ids_are_unique() -> None:
    ids = [row["id"] for name in NAMES for row in docs.rows(name)]
    assert len(set(ids)) == len(ids) == len(NAMES) * len(items())
    assert {row["video_id"] for row in docs.rows("late")} == {item.id for item in items()}


def test_a_task_that_is_not_there_is_no_attribute() -> None:
    assert callable(docs.motion_16)
    for name in ("motion_2", "motion", "__path__", "late_32"):
        with pytest.raises(AttributeError, match="no attribute"):
            getattr(docs, name)


def test_places_and_variants_are_all_there_is() -> None:
    assert {name.partition("_")[0] for name in NAMES} == {*VARIANTS, *PLACES, "text"}
