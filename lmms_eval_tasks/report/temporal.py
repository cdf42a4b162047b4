"""The figure of vsb_temporal on the page: matplotlib's SVG made safe to stand inside HTML, one a model."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from markupsafe import Markup

from videosafety.lmms_eval_tasks.report.board import TEMPORAL, model_key
from videosafety.lmms_eval_tasks.report.load import ReportError, Run
from videosafety.lmms_eval_tasks.report.sets import set_of
from videosafety.lmms_eval_tasks.vsb_temporal.plot import of_runs


@dataclass(frozen=True, slots=True)
class Plot:
    """One model's figure as inline SVG; `run` is the place of its first run."""

    run: int
    svg: Markup


def plots(runs: Sequence[Run]) -> list[Plot]:
    """A figure for each model that has vsb_temporal tasks with sample logs.

    Raises:
        ReportError: a log of such a task is not whole.
    """
    models: dict[str, list[int]] = {}
    for i, run in enumerate(runs):
        if any(set_of(name) == TEMPORAL and task.samples for name, task in run.tasks.items()):
            models.setdefault(model_key(run), []).append(i)
    found = []
    for members in models.values():
        try:
            # the newest last: of a task that several files hold, the last counts
            made = of_runs([runs[i].path for i in sorted(members, key=lambda i: runs[i].date)])
        except ValueError as error:
            raise ReportError(str(error)) from error
        if made:
            with matplotlib.rc_context({"svg.hashsalt": str(members[0])}):
                text = io.StringIO()
                made[0].savefig(text, format="svg", metadata={"Date": None})
            found.append(Plot(members[0], inline(text.getvalue(), f"t{members[0]}")))
    return found


def inline(svg: str, prefix: str) -> Markup:
    """A whole SVG file as an element of a page: ids made unique by `prefix`, no style sheet that would reach other elements.

    Trusted as markup: it is drawn by matplotlib, which escapes all text and turns it into paths.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style\b.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = re.sub(r'href="#', f'href="#{prefix}-', body)
    body = re.sub(r"url\(#", f"url(#{prefix}-", body)
    # what the style sheet said, for this drawing alone; its size in points gives way to the page's
    head = '<svg role="img" aria-label="DSR against distinct frames and visual tokens" style="stroke-linejoin:round;stroke-linecap:butt" '
    body = re.sub(r'^<svg\b([^>]*?)\bwidth="[^"]*"', rf"{head}\1", body, count=1)
    body = re.sub(r'^(<svg\b[^>]*?)\bheight="[^"]*"', r"\1", body, count=1)
    return Markup(body)  # noqa: S704  (see above)
