"""Judges whose servers fail or who say nothing: no label and no span stands on votes that were never cast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from model_server import model_server
from stage_cases import HARMFUL, SAFE, asking, config, video_row
from toy_clips import project, report, rows, write_clip

from videosafety.dataset_builder import build as building
from videosafety.dataset_builder import label, spans
from videosafety.dataset_builder.config import Labels, Spans, load
from videosafety.dataset_builder.rows import Bundle, Row, through
from videosafety.dataset_builder.servers import AskFailed, AskRefused

DOWN, WONT = AskFailed("other failed: HTTP 401"), AskRefused("other refused: no")


@pytest.mark.parametrize(
    ("said", "label_of_it", "by", "transient"),
    [
        pytest.param([SAFE, SAFE], 0, "all votes", False, id="both answer"),
        pytest.param([SAFE, DOWN], None, None, True, id="the second is down"),
        pytest.param([DOWN, SAFE], None, None, True, id="the first is down"),
        pytest.param([HARMFUL, "nonsense", DOWN], None, None, True, id="down at its second attempt"),
        pytest.param([DOWN, DOWN], None, None, True, id="both are down"),
        pytest.param([HARMFUL, WONT], 1, "votes of those that answered", False, id="the second will not say"),
        pytest.param([SAFE, "nonsense"], 0, "votes of those that answered", False, id="the second says nothing that can be read"),
        pytest.param([SAFE, HARMFUL], None, None, False, id="they differ"),
    ],
)
@pytest.mark.parametrize("rule", ["hold", "majority"])
def test_a_label_stands_on_all_votes_or_says_that_it_does_not(
    tmp_path: Path, said: list[Any], label_of_it: int | None, by: str | None, transient: bool, rule: str
) -> None:
    settings = config(tmp_path, labels=Labels([label.Judge("a", 0), label.Judge("b", 0)], on_disagreement=rule))
    found = through(Bundle("k", [video_row(tmp_path / "x.mp4")]), "label", label.label(settings, asking(*said)))
    assert [(row["visual_label"], row["provenance"]["decided_by"]) for row in found.rows] == ([] if by is None else [(label_of_it, by)])
    assert found.final is not transient
    if transient:
        assert "HTTP 401" in found.rejected[0].reason
        assert found.rejected[0].row is None, "a server is asked again, not a reviewer"


@pytest.fixture(scope="module")
def harmful(tmp_path_factory: pytest.TempPathFactory) -> Row:
    file = write_clip(tmp_path_factory.mktemp("spans") / "x.mp4", seed=6, seconds=6.0)
    return video_row(file) | {"visual_label": 1, "category": "weapons", "duration": 6.0}


@pytest.mark.parametrize(
    ("judges", "said", "expected", "by"),
    [
        pytest.param("a", [SAFE, HARMFUL, SAFE], [[2.0, 4.0]], "judges", id="every window has a verdict"),
        pytest.param("ab", [SAFE, SAFE, HARMFUL, WONT, WONT, SAFE, SAFE], [[2.0, 4.0]], "judges", id="one judge of a window will not say"),
        pytest.param("a", [HARMFUL, WONT, WONT, SAFE], [[0.0, 6.0]], "whole shot", id="nobody scored the middle"),
        pytest.param("a", [WONT], [[0.0, 6.0]], "whole shot", id="nobody scored any"),
        pytest.param("a", [DOWN], None, None, id="down"),
        pytest.param("a", [SAFE, HARMFUL, DOWN], None, None, id="down for the last window"),
        pytest.param("ab", [HARMFUL, HARMFUL, HARMFUL, DOWN], None, None, id="one of two is down"),
    ],
)
def test_a_window_that_nobody_scored_is_not_harmless(
    tmp_path: Path, harmful: Row, judges: str, said: list[Any], expected: list[list[float]] | None, by: str | None
) -> None:
    settings = config(tmp_path, labels=Labels([label.Judge(name, 2) for name in judges]), spans=Spans(window=2.0))
    found = through(Bundle("k", [harmful]), "spans", spans.spans(settings, asking(*said)))
    assert [(row["harm_spans"], row["provenance"]["spans_by"]) for row in found.rows] == ([] if by is None else [(expected, by)])
    assert found.final is (by is not None), "the next run asks a server that failed again"


def test_the_next_build_asks_a_judge_that_was_down(tmp_path: Path) -> None:
    with model_server() as model, model_server() as other:
        file = project(tmp_path, model.url, clips=2)
        body = yaml.safe_load(file.read_text())
        body["servers"]["other"]["url"] = other.url
        file.write_text(yaml.safe_dump(body))
        other.fault = lambda *_: (401, b'{"error": {"message": "no"}}')
        with pytest.raises(building.BuildError, match="no row is left"):
            building.build(load(file), quiet=True)
        assert {line["reason"].split(" (")[0] for line in report(tmp_path / "out")} == {"a judge's server failed: judge-2+0frames"}
        other.fault = None
        found = building.build(load(file), quiet=True)
    assert (found.rows["test"], found.to_try_again) == (4, 0)
    assert all(
        '"decided_by": "all votes"' in row["provenance"] and '"agreement": 1.0' in row["provenance"] for row in rows(tmp_path / "out")
    )
    assert model.kinds["label"] == 2, "the judge that had answered is not asked again"
