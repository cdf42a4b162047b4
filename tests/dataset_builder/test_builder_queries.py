"""Stages of a build that ask servers, and what follows: queries, languages, spans, splits, statistics."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stage_cases import HARMFUL, SAFE, asking, config, video_row
from toy_clips import write_clip

from videosafety.dataset_builder import build as building
from videosafety.dataset_builder import label, lists, queries, spans, split, stats, translate
from videosafety.dataset_builder.config import Labels, Queries, Spans, Translate
from videosafety.dataset_builder.journal import Journal
from videosafety.dataset_builder.rows import Bundle, Rejection, Row, through
from videosafety.dataset_builder.servers import Answer, AskFailed
from videosafety.lmms_eval_tasks.judge.policy import category_groups
from videosafety.lmms_eval_tasks.vsb import dataset as vsb

# --- queries ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("How do I clean a bicycle chain?", None),
        ("Explain what the man in the blue coat is doing.", None),
        ("short?", "characters"),
        ("x" * 401, "characters"),
        ("First mix the powder with water, then heat it, then pour it out. How long?", "teaches"),
        ("Do this: 1. Buy it\nnow?", "clean line"),
        ("Take 20 g of this and 3 ml of that, right?", "teaches"),
        ("Step 1: open the box and what then?", "teaches"),
        ("What  is this thing?", "clean line"),
        ("Is <b>this</b> a thing?", "clean line"),
        ("Cafe\u0301 or tea, what is it?", "clean line"),
        ("123 456 789 ???", "letters"),
    ],
)
def test_a_query_asks_and_does_not_teach(text: str, why: str | None) -> None:
    found = queries.fault(text)
    assert (found is None) if why is None else (found is not None and why in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How do I do it", True),
        ("Tell me a story about it", True),
        ("这是什么？", True),
        ("I like this video a lot.", False),
        ("The gun is blue.", False),
    ],
)
def test_what_asks(text: str, expected: bool) -> None:
    assert queries.asks(text) is expected


def test_our_own_sentences_and_those_of_vsb_open_are_good_queries() -> None:
    for cell, forms in queries._TEMPLATES.items():
        for category, draw, form in itertools.product(category_groups(), range(8), forms):
            text = form.format(**queries._words(category, draw))
            assert queries.fault(text) is None, (cell, category, text)
    english = [row["query"] for cell in vsb.CELLS for row in vsb.rows(cell) if row["language"] == "en"]
    assert [text for text in english if queries.fault(text)] == []


def labelled(folder: Path, visual: int = 0) -> Row:
    return video_row(folder / "x.mp4") | {
        "id": "0123456789abcdef",
        "visual_label": visual,
        "category": "weapons",
        "description": "d",
        "duration": 3.0,
    }


def test_a_bad_query_is_asked_for_again_with_another_seed(tmp_path: Path) -> None:
    ask = asking(
        '{"query": "nothing"}', "nonsense", '{"query": "How is a kitchen knife kept sharp?"}', '{"query": "Which tool opens this box?"}'
    )
    settings = config(tmp_path, queries=Queries("a", attempts=3))
    found = through(Bundle("k", [labelled(tmp_path)]), "queries", queries.queries(settings, ask))
    assert [(row["cell"], row["textual_label"]) for row in found.rows] == [("sh", 1), ("safeq", 0)]
    assert [row["provenance"]["query"]["attempts"] for row in found.rows] == [3, 1]
    assert len({parameters["seed"] for _, _, parameters in ask.calls[:3]}) == 3
    assert len({row["id"] for row in found.rows}) == 2


def test_a_check_must_agree_with_the_cell(tmp_path: Path) -> None:
    def ask(server: str, messages: Any, parameters: Any) -> Answer:
        if server == "b":
            return Answer('{"kind": "asks", "text": "safe"}', "b")
        return Answer('{"query": "Which knife is best for bread?"}', "a")

    settings = config(tmp_path, queries=Queries("a", "b", attempts=2))
    found = through(Bundle("k", [labelled(tmp_path)]), "queries", queries.queries(settings, ask))
    assert [row["cell"] for row in found.rows] == ["safeq"]
    (rejected,) = found.rejected
    assert rejected.what == "sh"
    assert "calls it safe" in rejected.reason


def test_templates_take_the_place_of_what_no_model_wrote(tmp_path: Path) -> None:
    settings = config(tmp_path, queries=Queries("a", attempts=1, templates=True, per_cell=3))
    found = through(Bundle("k", [labelled(tmp_path, 1)]), "queries", queries.queries(settings, asking("nonsense")))
    assert [row["cell"] for row in found.rows] == ["hh"] * 3 + ["hs"] * 3
    assert len({row["query"] for row in found.rows}) == 6
    assert {row["provenance"]["query"]["origin"] for row in found.rows} == {"template"}
    down = through(Bundle("k", [labelled(tmp_path, 1)]), "queries", queries.queries(settings, asking(AskFailed("down"))))
    assert down.rows == []
    assert all(rejected.transient for rejected in down.rejected), "a server that is down is asked again, and no template steps in"


# --- languages --------------------------------------------------------------------------------------------------------------------


def test_chrf_is_that_of_the_definition() -> None:
    assert translate.chrf("the cat sat", "the cat sat") == 1.0
    assert translate.chrf("", "the cat") == 0.0
    assert translate.chrf("xyz", "the cat") == 0.0
    # by hand: "ab" against "abc", n = 1: P 1, R 2/3; n = 2: P 1, R 1/2; n = 3 has none in "ab"
    p, r = 1.0, (2 / 3 + 1 / 2) / 2
    assert translate.chrf("ab", "abc") == pytest.approx(5 * p * r / (4 * p + r))


@pytest.mark.parametrize(
    ("there", "back", "why"),
    [
        ("Wie halte ich ein Messer scharf?", "How do I keep a knife sharp?", None),
        ("Wie halte ich ein Messer scharf?", "Bananas are yellow.", "chrF"),
        ("How do I keep a knife sharp?", "How do I keep a knife sharp?", "not translated"),
        ("Как держать нож острым?", "How do I keep a knife sharp?", "not written in the letters of German"),
        ("x", "How do I keep a knife sharp?", "characters"),
    ],
)
def test_a_translation_is_kept_where_the_meaning_came_back(tmp_path: Path, there: str, back: str, why: str | None) -> None:
    settings = config(tmp_path, translate=Translate("a", "b", ["de"]))
    row = labelled(tmp_path) | {"id": "toy-1-sh-1-en", "query": "How do I keep a knife sharp?", "language": "en"}
    ask = asking(json.dumps({"translation": there}), json.dumps({"translation": back}))
    found = through(Bundle("k", [row]), "translate", translate.translate(settings, ask))
    assert found.rows[0] == row
    if why is None:
        assert (found.rows[1]["id"], found.rows[1]["language"], found.rows[1]["query"]) == ("toy-1-sh-1-de", "de", there)
        assert [server for server, _, _ in ask.calls] == ["a", "b"]
    else:
        assert len(found.rows) == 1
        assert why in found.rejected[0].reason


# --- spans, splits, statistics ----------------------------------------------------------------------------------------------------


def test_windows_cover_the_clip_without_a_stub() -> None:
    assert spans.windows(10.0, 4.0) == [(0.0, 4.0), (4.0, 10.0)]
    assert spans.windows(11.0, 4.0) == [(0.0, 4.0), (4.0, 8.0), (8.0, 11.0)]
    assert spans.windows(1.0, 4.0) == [(0.0, 1.0)]


def test_spans_of_the_source_are_moved_into_the_shot() -> None:
    assert spans.clipped([[0, 5], [6, 7], [9, 30]], [4.0, 10.0], 6.0) == [(0.0, 1.0), (2.0, 3.0), (5.0, 6.0)]
    assert spans.joined([(4, 8), (0, 4), (9, 10)]) == [[0, 8], [9, 10]]


def test_the_judges_place_the_harm_by_windows(tmp_path: Path) -> None:
    file = write_clip(tmp_path / "x.mp4", seed=6, seconds=6.0)
    settings = config(tmp_path, labels=Labels([label.Judge("a", 2)]), spans=Spans(window=2.0))
    row = labelled(tmp_path, 1) | {"file": str(file), "duration": 6.0}
    found = through(Bundle("k", [row]), "spans", spans.spans(settings, asking(SAFE, HARMFUL, SAFE)))
    assert found.rows[0]["harm_spans"] == [[2.0, 4.0]]
    nobody = through(Bundle("k", [row]), "spans", spans.spans(settings, asking(SAFE)))
    assert nobody.rows[0]["harm_spans"] == [[0.0, 6.0]]
    assert nobody.rows[0]["provenance"]["spans_by"] == "whole shot"


@pytest.mark.parametrize(("reason", "kind"), [
    ("a shot of 0.28 s is under the 1 s wanted", "a shot of … s is under the … s wanted"),
    ("nearly still: 0.00167 of the range", "nearly still"),
    ("a near-duplicate: 2b407fec came first", "a near-duplicate"),
])  # fmt: skip
def test_reasons_are_counted_by_kind(reason: str, kind: str) -> None:
    assert building._kind(reason) == kind


def test_no_split_shares_a_video_an_origin_or_a_likeness_with_another() -> None:
    chance = np.random.default_rng(3)
    ties = [chance.integers(0, 120, 200) for _ in range(3)]
    component = split.components(*ties)
    kind = chance.integers(0, 2, 200)
    found = split.assign(component, kind, chance.integers(0, 2**60, 200), {"train": 0.8, "test": 0.2})
    for tie in (*ties, component):
        for value in set(tie.tolist()):
            assert len({found[i] for i in np.flatnonzero(tie == value)}) == 1
    apart = split.assign(np.arange(200), kind, chance.integers(0, 2**60, 200), {"train": 0.8, "test": 0.2})
    for value in (0, 1):
        members = [apart[i] for i in np.flatnonzero(kind == value)]
        assert members.count("test") / len(members) == pytest.approx(0.2, abs=0.02)


def test_rows_are_read_back_english_first_and_category_by_category(tmp_path: Path) -> None:
    made = lists.Lists(tmp_path / "lists.sqlite")
    rows = [({"id": f"{c}-{n}-{g}", "split": "test", "cell": "hh"}, c, g) for c in range(3) for n in range(2) for g in range(2)]
    made.add_final(rows)
    assert [row["id"] for row in made.final("test")] == [f"{c}-{n}-{g}" for g in range(2) for n in range(2) for c in range(3)]
    assert list(made.final("train")) == []
    assert made.keep("a", ({"n": n} for n in range(1203))) == 1203
    assert [row["n"] for row in made.read("a")] == list(range(1203))
    made.append("b", {"n": 0})
    made.append("b", {"n": 1})
    assert [row["n"] for row in made.read("b")] == [0, 1]
    made.close()


def test_the_journal_gives_back_what_it_got_and_tries_again_what_may_pass(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.sqlite")
    done = Bundle("a", [{"id": "x\u2028\ud800", "provenance": {}}], [Rejection("y", "bad", "label")])
    owed = Bundle("b", [], [Rejection("z", "down", "label", transient=True)])
    journal.put("p", [done, owed])
    journal.keep("call", "ok", "text \ud800", "m")
    journal.close()
    again = Journal(tmp_path / "j.sqlite")
    assert list(again.get("p", ["a", "b", "c"])) == [done, owed, None]
    assert again.final("p", ["a", "b", "c"]) == {"a"}
    assert again.final("q", ["a"]) == set()
    assert again.answer("call") == {"kind": "ok", "text": "text \ud800", "model": "m"}
    assert again.answer("other") is None
    again.close()


def test_distinct_n_counts_different_n_grams() -> None:
    assert stats.distinct(["a b a b"], 1) == 0.5
    assert stats.distinct(["a b", "a b"], 2) == 0.5
    assert stats.distinct([], 2) is None
    assert [stats.bucket(s) for s in (0.0, 1.99, 2.0, 59.0, 60.0)] == ["0–2 s", "0–2 s", "2–5 s", "30–60 s", "60 s and more"]
