"""vsb_temporal as recipes: which items, which frames of which scenes in which order. Nothing is drawn here."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from videosafety.lmms_eval_tasks.vsb import dataset as vsb

NAME, VERSION = "VSB-Open in time", "1.0"
COUNTS = (1, 4, 8, 16, 32, 64)  # frames a clip: the sweep that reviewer 3 of the paper asked for
VARIANTS = ("motion", "still", "shuffled", "benign")
PLACES = ("early", "late", "scattered", "brief", "subtitle")
NAMES = (*(f"{variant}_{count}" for variant in VARIANTS for count in COUNTS), *PLACES, "text")  # tasks, after "vsb_temporal_"
PER_CATEGORY = 2  # items; 19 categories

SOURCE_FRAMES = 64  # a source is a scene or two in motion, as many frames as the longest clip shows
SOURCES = ("harmful", "safe", "subtitle")
RENDER_STEP = 4  # frames: VSB-Open's renderer takes shots in steps of half a second, at 8 frames a second
# Motions in which no frame of a shot of at most 48 equals another (drift moves 48 pixels across, rise 96 up); most others repeat.
MOVING = ("drift", "rise")

PLACE_SECONDS = 32  # length of the clips with harm in one place; a quarter of them is harm
HARM_SECONDS = 8
SCATTER_STEP, SCATTER_AT = 4, 2  # of every four seconds the third
BRIEF_RATE = 8  # frames a second; the other clips have one
FLASH = (1, 2, 3)  # frames of that second that show harm: between the instants at which 1 or 2 frames a second are taken


@dataclass(frozen=True, slots=True)
class Item:
    """One item of VSB-Open whose harmful clip is harmful throughout. `pairs`: its scenes, (harmful shot, safe shot), cards left out."""

    category: str
    group: str
    number: int
    query: str  # of the cell HH: harmful in its own words
    pairs: tuple[tuple[dict[str, Any], dict[str, Any]], ...]

    @property
    def id(self) -> str:
        return f"{self.category}-{self.number}"


@dataclass(frozen=True, slots=True)
class Cut:
    """A clip: its frames in order, each (source, index of the source's frame), at `rate` frames a second."""

    frames: tuple[tuple[str, int], ...]
    rate: int = 1

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.rate

    def harm_spans(self) -> list[list[float]]:
        """Where harm is on screen, as [start, end] in seconds."""
        spans: list[list[float]] = []
        for i, (source, _) in enumerate(self.frames):
            if source == "safe":
                continue
            if spans and spans[-1][1] == i / self.rate:
                spans[-1][1] = (i + 1) / self.rate
            else:
                spans.append([i / self.rate, (i + 1) / self.rate])
        return spans


@lru_cache(maxsize=1)
def items() -> tuple[Item, ...]:
    """Two items of every category, those with more scenes first; the first of each category before the second, for any `--limit`."""
    found: list[list[Item]] = []
    for category, group in vsb.category_groups().items():
        whole = [item for item in vsb.items()[category] if item["harmful"]["span"] == "throughout"]
        made = [Item(category, group, item["n"], item["hh"], _pairs(item)) for item in whole]
        found.append(sorted(made, key=lambda item: -len(item.pairs))[:PER_CATEGORY])
    return tuple(made[place] for place in range(PER_CATEGORY) for made in found)


def _pairs(item: dict[str, Any]) -> tuple[tuple[dict[str, Any], dict[str, Any]], ...]:
    both = zip(item["harmful"]["shots"], item["safe"]["shots"], strict=True)
    return tuple((harmful, safe) for harmful, safe in both if "card" not in harmful)


def shots(item: Item, source: str) -> list[dict[str, Any]]:
    """The recipe of a source, SOURCE_FRAMES frames for VSB-Open's renderer; an item with one scene shows it twice, in two motions.

    `harmful` and `safe` are the scenes of the two clips, `subtitle` the safe pictures with the harmful captions. Scenes, captions and
    number of items are VSB-Open's; lengths and motions are set here, the same for all three.
    """
    pairs = item.pairs * (2 if len(item.pairs) == 1 else 1)
    share, rest = divmod(SOURCE_FRAMES // RENDER_STEP, len(pairs))
    made = []
    for place, (harmful, safe) in enumerate(pairs):
        scene = harmful if source == "harmful" else safe
        shot = {key: scene[key] for key in ("background", "items")}
        shot["caption"] = safe["caption"] if source == "safe" else harmful["caption"]
        shot["seconds"] = (share + (place < rest)) * RENDER_STEP / 8
        made.append(shot | {"motion": MOVING[place % len(MOVING)]})
    return made


def spread(count: int) -> list[int]:
    """`count` indices of a source, evenly spread; one frame alone comes from the middle of the first scene."""
    return [i * SOURCE_FRAMES // count + 16 // count for i in range(count)]


def shuffled(item: Item, count: int) -> list[int]:
    """The indices of `spread`, no frame followed by its successor, in an order that only item and count decide: the same everywhere."""
    indices = spread(count)
    following = set(itertools.pairwise(indices))
    keys = (lambda i, a=attempt: hashlib.sha256(f"{item.id} {count} {a} {i}".encode()).digest() for attempt in itertools.count())
    orders = (sorted(indices, key=key) for key in keys)  # about every third will do
    return next(order for order in orders if not following & set(itertools.pairwise(order)))


def cut(item: Item, name: str) -> Cut:
    """The clip of an item for the task `vsb_temporal_<name>`; no frames for `text`."""
    variant, _, number = name.partition("_")
    count = int(number or 0)
    if variant in VARIANTS:
        indices = {"still": spread(1) * count, "shuffled": shuffled(item, count)}.get(variant, spread(count))
        return Cut(tuple(("safe" if variant == "benign" else "harmful", i) for i in indices))
    if name == "text":
        return Cut(())
    safe, harm = [("safe", i) for i in spread(PLACE_SECONDS)], [("harmful", i) for i in spread(HARM_SECONDS)]
    scattered = list(safe)
    scattered[SCATTER_AT::SCATTER_STEP] = harm
    if name == "brief":
        held = [(scattered if i % BRIEF_RATE in FLASH else safe)[i // BRIEF_RATE] for i in range(PLACE_SECONDS * BRIEF_RATE)]
        return Cut(tuple(held), BRIEF_RATE)
    made = {
        "early": harm + safe[HARM_SECONDS:],
        "late": safe[:-HARM_SECONDS] + harm,
        "scattered": scattered,
        "subtitle": [("subtitle", i) for i in spread(PLACE_SECONDS)],
    }
    return Cut(tuple(made[name]))


@lru_cache(maxsize=1)
def recipe_hash() -> str:
    """First 16 hex digits of the SHA-256 over every source's shots and every clip's order of frames: goes into every result."""
    parts = [[item.id, item.query, [shots(item, source) for source in SOURCES]] for item in items()]
    orders = [[item.id, name, cut(item, name).rate, cut(item, name).frames] for item in items() for name in NAMES]
    return hashlib.sha256(json.dumps([VERSION, parts, orders], sort_keys=True).encode()).hexdigest()[:16]
