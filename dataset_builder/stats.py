"""What the set holds, counted row by row: stats.json, a page with plots, and the card, which all say the same numbers."""

from __future__ import annotations

import dataclasses
import heapq
import json
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from videosafety.dataset_builder.config import SPLITS, Config
from videosafety.dataset_builder.lists import Lists
from videosafety.dataset_builder.prompts import TEMPLATES, bodies
from videosafety.dataset_builder.provenance import versions
from videosafety.dataset_builder.review import agreement
from videosafety.dataset_builder.rows import number
from videosafety.dataset_builder.split import TIED, recall
from videosafety.dataset_builder.write import folder_of, replacing
from videosafety.lmms_eval_tasks.judge.agreement import panel_labels
from videosafety.lmms_eval_tasks.judge.policy import category_groups, policy_hash

if TYPE_CHECKING:
    from videosafety.dataset_builder.build import Built

MOST = 20_000  # queries and clips that figures which need all of them at once look at; chance draws them
CELLS = ("hh", "hs", "sh", "safeq")
SHOWS = {
    "hh": "harmful video, harmful query",
    "hs": "harmful video, harmless words",
    "sh": "safe video, harmful query",
    "safeq": "safe video, safe look-alike query",
}
DURATIONS = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0)  # upper bounds of the buckets, in seconds; the last is open
_OPENING = 3  # words


class Drawn:
    """At most MOST things of a stream, the same ones whatever their order: those whose ids draw the lowest numbers."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, str, Any]] = []

    def add(self, identity: str, thing: Any) -> None:
        entry = (-number("statistics", identity), identity, thing)
        if len(self._heap) < MOST:
            heapq.heappush(self._heap, entry)
        elif entry[:2] > self._heap[0][:2]:
            heapq.heapreplace(self._heap, entry)

    def all(self) -> list[Any]:
        return [thing for _, _, thing in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


def distinct(texts: Iterable[str], n: int) -> float | None:
    """distinct-n: different n-grams of words over all of them, in (0, 1]; None without any (Li et al. 2016)."""
    grams: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        words = text.casefold().split()
        grams.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(grams) / grams.total() if grams else None


def bucket(seconds: float) -> str:
    """The bucket of DURATIONS that a length falls into."""
    low = 0.0
    for high in DURATIONS:
        if seconds < high:
            return f"{low:g}–{high:g} s"
        low = high
    return f"{low:g} s and more"


def gather(config: Config, found: Built, lists: Lists) -> dict[str, Any]:
    """All figures. A figure that is not defined is None, never 0."""
    counts: dict[str, Counter[Any]] = {
        name: Counter() for name in ("cell", "category", "language", "split", "duration", "decided", "spans", "origin")
    }
    queries, votes = Drawn(), Drawn()
    chrf: list[float] = []
    clips: set[int] = set()
    for split in SPLITS:
        for row in lists.final(split):
            made = row["provenance"]
            counts["cell"][row["cell"], row["category"]] += 1
            counts["language"][row["language"]] += 1
            counts["split"][split, row["cell"]] += 1
            if row["language"] == "en":
                queries.add(row["id"], row["query"])
                counts["origin"][made["query"]["origin"]] += 1
            elif made["translation"]:
                chrf.append(made["translation"]["chrf"])
            clip = number(row["video_id"])
            if clip not in clips:
                clips.add(clip)
                counts["duration"][bucket(row["duration"])] += 1
                counts["decided"][made["decided_by"]] += 1
                if row["visual_label"]:
                    counts["spans"][made["spans_by"]] += 1
                votes.add(row["video_id"], _votes(made["votes"]))
    for row in lists.read("held"):  # without them judges would seem to agree
        votes.add(row["id"], _votes(row["provenance"]["votes"]))
    english = queries.all()
    openings = Counter(" ".join(query.casefold().split()[:_OPENING]) for query in english)
    origins = counts["origin"].total()
    return {
        "name": config.name,
        "version": config.version,
        "rows": sum(found.rows[split] for split in SPLITS),
        "clips": len(clips),
        "videos": found.videos,
        "splits": {split: {cell: counts["split"][split, cell] for cell in CELLS} for split in SPLITS if found.rows[split]},
        "clips_by_split": dict(found.clips),
        "cells": {cell: {category: counts["cell"][cell, category] for category in category_groups()} for cell in CELLS},
        "languages": dict(counts["language"].most_common()),
        "durations": {name: counts["duration"][name] for name in map(bucket, (0.0, *DURATIONS))},
        "labels_decided_by": dict(counts["decided"]),
        "spans_by": dict(counts["spans"]),
        "agreement": agreement(panel_labels(votes.all())),
        "families": {role: sorted(names) for role, names in config.families().items()},
        "queries": {
            "n": len(english),
            "distinct_1": distinct(english, 1),
            "distinct_2": distinct(english, 2),
            "template_share": counts["origin"]["template"] / origins if origins else None,
            "most_frequent_opening": openings.most_common(1)[0] if openings else None,
            "same_query_share": 1 - len({query.casefold() for query in english}) / len(english) if english else None,
        },
        "translation": {"n": len(chrf), "mean_chrf": sum(chrf) / len(chrf) if chrf else None},
        "near_duplicates": found.duplicates,
        "likeness": [{"bits": bits, "found": recall(bits)} for bits in (config.filter.duplicate_bits, TIED * config.filter.duplicate_bits)],
        "rejected": dict(found.rejected.most_common()),
        "review": found.review | {"queue": found.to_review},
        "training": {key: n for key, n in found.rows.items() if key.endswith(" rows")},
        "warnings": found.warnings,
        "policy": policy_hash(),
        "config": config.of(*(f.name for f in dataclasses.fields(Config) if f.name not in ("root", "out"))),
        "versions": dict(versions()),
    }


def _votes(votes: Iterable[dict[str, Any]]) -> dict[str, str]:
    return {vote["judge"]: vote["label"] for vote in votes}


@cache
def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        # The page is escaped; the card is Markdown.
        autoescape=lambda name: bool(name and name.endswith(".html.jinja")),  # noqa: S701
    )  # fmt: skip
    made.filters["figure"] = figure
    made.filters["share"] = lambda value: "not defined" if value is None else f"{100 * value:.1f} %"
    return made


def figure(value: float | None) -> str:
    """A number for reading, `not defined` where there is none."""
    return "not defined" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.3f}"


def write_pages(config: Config, found: Built, lists: Lists) -> dict[str, Any]:
    """Write stats.json, stats.html and the card (vsb/README.md); returns the figures."""
    figures = gather(config, found, lists)
    languages = list(figures["languages"])
    known = {
        "figures": figures, "shows": SHOWS, "groups": category_groups(), "titles": {name: body["title"] for name, body in bodies().items()},
        "config": config, "languages": languages,
        "style": resources.files("videosafety.lmms_eval_tasks.report").joinpath("page.css").read_text(encoding="utf-8"),
        "size": next(name for most, name in _SIZES if figures["rows"] < most),
    }  # fmt: skip
    pages = {
        config.folder / "stats.json": json.dumps(figures, indent=1, ensure_ascii=False) + "\n",
        config.folder / "stats.html": _environment().get_template("stats.html.jinja").render(known),
        folder_of(config.folder, "test") / "README.md": _environment().get_template("card.md.jinja").render(known),
    }
    for file, text in pages.items():
        _write(file, text)
    return figures


# The Hub's names for how many rows a set has.
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10**12, "1M<n<10M"))


def _write(file: Path, text: str) -> None:
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
