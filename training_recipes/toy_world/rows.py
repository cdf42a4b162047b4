"""The toy world's training rows: what the base learns from nothing, and what each of the four stages trains on. Nothing held out."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from videosafety.lmms_eval_tasks.toy_world import world
from videosafety.lmms_eval_tasks.toy_world.dataset import ensure_clips
from videosafety.training_recipes.schema import CURRENT, SAFETY_TYPE, Row, new_row

SOURCE = "toy_world"
CHOICE = "multiple choice"  # the problem type of questions with one right answer
DESCRIBE = "describe the clip ."
HARMFUL_REQUESTS = world.requests(world.ROUGH, world.LIVING, held_out=False)
SAFE_REQUESTS = {
    "lookalike": world.requests(world.ROUGH, world.THINGS, held_out=False),
    "plain": world.requests(world.GENTLE, world.LIVING + world.THINGS, held_out=False),
    "shown": list(world.SHOWN),
}


class Maker:
    """Draws rows at random, the same for the same seed. `folder` is where the clips lie: the rows' data root."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311
        every = world.clips(held_out=False)
        self.paths = ensure_clips(every)
        self.folder = next(iter(self.paths.values())).parent
        self.clips = {harmful: [clip for clip in every if clip.harmful == harmful] for harmful in (False, True)}
        self.made = 0

    def clip(self, harmful: bool) -> world.Clip:
        return self.random.choice(self.clips[harmful])

    def row(self, clip: world.Clip, query: str, harmful: bool | None, **target: Any) -> Row:
        self.made += 1
        labels = {} if harmful is None else {"visual_label": int(clip.harmful), "textual_label": int(harmful)}
        known = {"id": f"toy-{self.made}", "source": SOURCE, "prompt": query, "videos": [self.paths[clip.id].name]}
        return new_row(**known, **labels, language="en", label_version=CURRENT, **target)

    def request(self, cell: str) -> tuple[world.Clip, world.Request]:
        """A clip and a request of a cell of `world.CELLS`."""
        visual, textual = world.CELLS[cell]
        asks: Sequence[world.Request] = HARMFUL_REQUESTS if textual else SAFE_REQUESTS["shown"]
        if cell == "safeq":
            asks = SAFE_REQUESTS[self.random.choice(list(SAFE_REQUESTS))]
        return self.clip(bool(visual)), self.random.choice(asks)

    def question(self, harmful: bool = False) -> tuple[world.Clip, str, str]:
        """A clip, a question about it, and its one right answer."""
        clip, kind = self.clip(harmful), self.random.choice(list(world.QUESTIONS))
        return clip, self.random.choice(world.QUESTIONS[kind]), world.fact(clip, kind)


def base_rows(n: int, seed: int) -> list[Row]:
    """What the base learns: to see, to answer questions, and to help with everything that is asked, harmful or not."""
    maker, found = Maker(seed), []
    for i in range(n):
        harmful = maker.random.random() < 1 / 3
        if i % 5 in (0, 2):
            clip = maker.clip(harmful)
            found.append(maker.row(clip, DESCRIBE, None, completion=world.describe(clip)))
        elif i % 5 in (1, 3) and i % 10 != 1:
            clip, query, answer = maker.question(harmful)
            found.append(maker.row(clip, query, None, completion=answer))
        else:
            clip, request = maker.request(maker.random.choice(list(world.CELLS)))
            found.append(maker.row(clip, request.query, None, completion=world.helpful(clip, request)))
    return found


def stage_rows(n: int, seed: int, form: str, cells: Sequence[str] = ("hh", "sh", "hs", "safeq", "utility", "utility")) -> list[Row]:
    """Rows of the cells, as many of each, in an order by chance.

    form: what a row's target is: `plain` (the safe answer alone: alarm warm-up and AT-SFT), `tagged` (with thinking, answer and labels in
        their tags: CoT cold start), or `reference` (the answer to compare with: GRPO).
    """
    maker, found = Maker(seed), []
    for i in range(n):
        cell = cells[i % len(cells)]
        if cell == world.UTILITY:
            clip, query, answer = maker.question()
            harmful, asked, kind = False, query.rstrip("?. "), CHOICE
        else:
            clip, request = maker.request(cell)
            query, answer, harmful = request.query, world.safe_answer(clip, request), request.harmful
            asked, kind = world.asked_for(request), SAFETY_TYPE
        if form == "reference":
            target = {"reference": answer, "problem_type": kind}
        else:
            target = {"completion": answer if form == "plain" else world.tagged(clip, asked, answer, harmful)}
        found.append(maker.row(clip, query, harmful, category=cell, **target))
    maker.random.shuffle(found)
    return found


def data_root(seed: int = 0) -> Path:
    """The folder that the rows' clips are in."""
    return Maker(seed).folder
