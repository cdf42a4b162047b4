"""What a decision is about: it holds for the text that was reviewed and for its translations, and for nothing that nobody saw."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from model_server import Model, model_server
from toy_clips import project, report, rows

from videosafety.dataset_builder.build import Built, build
from videosafety.dataset_builder.config import load
from videosafety.dataset_builder.review import Decision, Decisions, ReviewError, checked, error_rate, read_csv, read_queue, seen


@pytest.fixture(scope="module")
def model() -> Any:
    with model_server() as found:
        yield found


@pytest.fixture(scope="module")
def _made(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project of two clips in three languages, built."""
    languages = {"server": "writer", "back": "judge", "targets": ["zh", "de"]}
    file = project(tmp_path_factory.mktemp("decisions"), model.url, clips=2, translate=languages)
    build(load(file), quiet=True)
    return file.parent


@pytest.fixture
def out(_made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(_made, tmp_path / "project")) / "out"


def decide(out: Path, identity: str, action: str, reviewer: str = "ann", **more: Any) -> None:
    items = read_queue(out / "review")
    Decisions(out / "review").add(checked({"id": identity, "action": action, "reviewer": reviewer, **more}, items, "test"))


def again(out: Path, **changes: Any) -> tuple[Built, dict[str, Any]]:
    """Build once more, with other settings; what came of it, and the figures of the review."""
    file = out.parent / "build.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))
    return build(load(file), quiet=True), json.loads((out / "stats.json").read_text(encoding="utf-8"))["review"]


def by_id(out: Path) -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in rows(out)}


# --- what was reviewed is what counts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changed", [False, True], ids=["the same set", "another seed"])
def test_decisions_hold_for_what_was_seen(out: Path, changed: bool) -> None:
    before = by_id(out)
    english = [identity for identity in before if identity.endswith("-en")]
    actions: list[tuple[str, dict[str, Any]]] = [("reject", {}), ("fix", {"fix": {"query": "Which of these is the best?"}})]
    for identity, (action, more) in zip(english, [*actions, ("accept", {}), ("accept", {})], strict=True):
        decide(out, identity, action, **more)
    found, figures = again(out, seed=7 if changed else 0)
    after = by_id(out)
    told = {identity for identity, row in after.items() if json.loads(row["provenance"])["decisions"]}
    if not changed:
        assert (figures["error_rate"]["n"], figures["error_rate"]["wrong"], figures["error_rate"]["clips"]) == (4, 2, 2)
        assert (told, english[0] in after, found.warnings) == (set(english[1:]), False, [])
        return
    assert set(after) == set(before), "ids are the same"
    assert all(after[identity]["query"] != before[identity]["query"] for identity in english), "and nothing under them is"
    assert told == set()
    assert (figures["error_rate"]["n"], figures["error_rate"]["rate"], figures["decisions"]) == (0, None, 0)
    assert found.warnings == ["4 reviewed items are gone or no longer what was reviewed: what was said of them does not count"]
    _, back = again(out, seed=0)
    assert back["error_rate"]["n"] == 4, "the reviewed set is back, and so is what was said of it"


@pytest.mark.parametrize("what", ["query", "category", "textual_label", "clip"])
def test_any_part_of_a_reviewed_row_is_part_of_the_decision(out: Path, what: str) -> None:
    decide(out, next(iter(by_id(out))), "accept")
    line = json.loads((out / "review" / "decisions.jsonl").read_text())
    row = by_id(out)[line["id"]] | {"provenance": json.loads(by_id(out)[line["id"]]["provenance"])}
    assert seen(row) == line["of"]
    others = {"clip": {"provenance": row["provenance"] | {"clip_sha256": "0"}}, "textual_label": {what: 1 - row["textual_label"]}}
    assert seen(row | others.get(what, {what: "x"})) != line["of"]


def test_an_error_that_moves_the_clip_to_other_cells_is_still_counted(out: Path) -> None:
    again(out)  # the folder is a copy: what is remembered is kept by place
    wrong = next(row for row in rows(out) if row["cell"] == "sh" and row["language"] == "en")
    decide(out, wrong["id"], "fix", fix={"visual_label": 1})
    found, figures = again(out)
    assert {row["cell"] for row in rows(out) if row["video_id"] == wrong["video_id"]} == {"hh", "hs"}
    assert (figures["error_rate"]["n"], figures["error_rate"]["wrong"], found.warnings) == (1, 1, [])


def test_a_table_of_an_earlier_set_is_refused(out: Path) -> None:
    filled = out / "filled.csv"
    text = (out / "review" / "queue.csv").read_text(encoding="utf-8").splitlines()
    head = text[0].split(",")
    row = next(line for line in text[1:] if ",row," in line)
    row = row[: len(row) - (len(head) - head.index("action"))] + ",accept,cy,,,,,"
    filled.write_text(f"{text[0]}\n{row}\n", encoding="utf-8")
    assert read_csv(filled, out / "review") == 1
    again(out, seed=7)
    with pytest.raises(ReviewError, match="line 2: this row is another since the table was written"):
        read_csv(filled, out / "review")


def test_reviewers_of_different_texts_are_no_pair(tmp_path: Path) -> None:
    decisions = Decisions(tmp_path)
    for who, of in (("ann", "old"), ("bob", "new")):
        for n in range(3):
            decisions.add(Decision(str(n), "row", "v", "accept" if n else "reject", who, "sample", of=of))
    figures = decisions.figures({(str(n), "new") for n in range(3)})
    assert (figures["agreement"]["reviewers"], figures["agreement"]["n"], figures["stale"]) == (["bob"], 0, 0)
    assert decisions.figures({("0", "new")})["stale"] == 2


def test_rows_of_one_clip_are_not_independent() -> None:
    def found(clips: str) -> dict[str, Any]:
        return error_rate(Decision(str(n), "row", clip, "accept", "ann", "sample") for n, clip in enumerate(clips))

    alone, together = found("abcdefghijkl"), found("aaabbbcccddd")
    assert (alone["n"], alone["clips"], together["n"], together["clips"]) == (12, 12, 12, 4)
    assert alone["rate"] == together["rate"] == 0.0
    assert alone["high"] == pytest.approx(0.2425, abs=1e-4), "Wilson, 0 of 12"
    assert together["high"] == pytest.approx(0.4899, abs=1e-4), "Wilson, 0 of 4"


# --- an English row and its translations --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "fix", "left", "reason"),
    [
        pytest.param("accept", None, {"en", "zh", "de"}, None, id="accepted"),
        pytest.param("reject", None, set(), "its English row was left out: rejected by a reviewer: it teaches", id="rejected"),
        pytest.param("fix", {"query": "Which of these is the best?"}, {"en"}, "its English query was changed by a reviewer", id="query"),
        pytest.param("fix", {"textual_label": 0}, {"en", "zh", "de"}, None, id="label"),
        pytest.param("fix", {"category": "theft"}, {"en", "zh", "de"}, None, id="category"),
        pytest.param(
            "fix", {"query": "Which of these is it?", "textual_label": 0}, {"en"}, "its English query was changed by a reviewer", id="both"
        ),
    ],
)
def test_translations_follow_the_english_row(out: Path, action: str, fix: Any, left: set[str], reason: str | None) -> None:
    row = next(row for row in rows(out) if row["cell"] == "sh" and row["language"] == "en")
    decide(out, row["id"], action, reason="it teaches", fix=fix)
    again(out)
    stem = row["id"].removesuffix("en")
    found = {row["language"]: row for row in rows(out) if row["id"].startswith(stem)}
    assert set(found) == left
    told = {line["id"]: line["reason"] for line in report(out) if line.get("stage") == "review"}
    assert {told[f"{stem}{language}"] for language in {"zh", "de"} - left} == ({reason} if reason else set())
    for key, value in (fix or {}).items():
        assert {row[key] for row in found.values()} == {value}
    if fix and "textual_label" in fix:
        assert {row["cell"] for row in found.values()} == {"safeq"}


def test_a_decision_on_a_translation_is_about_it_alone_and_comes_last(out: Path) -> None:
    stem = next(row["id"] for row in rows(out) if row["cell"] == "sh" and row["language"] == "en").removesuffix("en")
    decide(out, f"{stem}en", "fix", fix={"category": "theft"})
    decide(out, f"{stem}de", "fix", fix={"category": "privacy"})
    decide(out, f"{stem}zh", "reject", reason="not Chinese")
    again(out)
    found = {row["language"]: row for row in rows(out) if row["id"].startswith(stem)}
    assert set(found) == {"en", "de"}
    assert (found["en"]["category"], found["de"]["category"]) == ("theft", "privacy")
    assert len(json.loads(found["de"]["provenance"])["decisions"]) == 2
