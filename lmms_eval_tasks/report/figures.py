"""The report's charts as inline SVG: bars with error whiskers and a radar, drawn here and coloured by the page's own style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from videosafety.lmms_eval_tasks.metrics import Rate
from videosafety.lmms_eval_tasks.report.summary import interval_words, percent, printable, value_words

COLOURS = 6  # page.css has classes c0 to c5; further runs start again at c0
RADAR = 640  # width and height of the radar's own coordinates; empty strips above and below are cut off
RADIUS = 200


def colour(index: int) -> str:
    """The style-sheet class that colours the run at this place."""
    return f"c{index % COLOURS}"


def bar(figure: Rate, index: int) -> Markup:
    """One rate as a horizontal bar over the whole width of its place, whiskers for the 95 % interval; an empty track without a rate."""
    ticks = Markup("").join(Markup('<line class="tick" x1="{0}%" x2="{0}%" y1="3" y2="17"/>').format(x) for x in (25, 50, 75))
    track = Markup('<rect class="{}" x="0" y="3" width="100%" height="14" rx="3"/>')
    label = value_words(figure)
    marks = Markup("")
    if printable(figure) and figure.value is not None and figure.low is not None and figure.high is not None:
        label += f", 95 % interval {interval_words(figure)}, n = {figure.n_scored}"
        low, high = f"{100 * figure.low:.2f}%", f"{100 * figure.high:.2f}%"
        marks = Markup('<rect class="fill" x="0" y="3" width="{:.2f}%" height="14" rx="3"/>').format(100 * figure.value)
        marks += Markup('<line class="whisker" x1="{}" x2="{}" y1="10" y2="10"/>').format(low, high)
        marks += Markup("").join(Markup('<line class="whisker" x1="{0}" x2="{0}" y1="6" y2="14"/>').format(x) for x in (low, high))
    frame = Markup('<svg class="bar {}" width="100%" height="20" role="img" aria-label="{}">{}{}{}</svg>')
    return frame.format(colour(index), label, track.format("track" if marks else "track empty"), ticks, marks)


def radar(axes: Sequence[tuple[str, str]], series: Sequence[tuple[int, str, Mapping[str, Rate]]]) -> Markup:
    """DSR over categories, one closed line a run; empty where fewer than three categories are given.

    Args:
        axes: (category id, title), clockwise from the top.
        series: (place of the run, its name, category id -> rate). Categories without a printable rate leave a gap in the line.
    """
    if len(axes) < 3:
        return Markup("")
    parts = [Markup("")]
    for share in (0.25, 0.5, 0.75, 1.0):
        parts.append(Markup('<polygon class="ring" points="{}"/>').format(_points([(i, share) for i in range(len(axes))], len(axes))))
    for i, (_, title) in enumerate(axes):
        x, y = _at(i, 1.0, len(axes))
        parts.append(Markup('<line class="ring" x1="{0}" y1="{0}" x2="{1:.1f}" y2="{2:.1f}"/>').format(RADAR // 2, x, y))
        parts.append(_axis_label(i, title, len(axes)))
    for place, name, rates in series:
        parts.append(_line(axes, place, name, rates))
    for share in (0.5, 1.0):
        x, y = _at(0, share, len(axes))
        parts.append(Markup('<text class="scale" x="{:.1f}" y="{:.1f}">{:.0f} %</text>').format(x + 4, y + 11, 100 * share))
    label = "DSR per category: " + ", ".join(name for _, name, _ in series)
    return Markup('<svg class="radar" viewBox="0 64 {0} 512" role="img" aria-label="{1}">{2}</svg>').format(
        RADAR, label, Markup("").join(parts)
    )


def _at(axis: int, share: float, axes: int) -> tuple[float, float]:
    angle = 2 * math.pi * axis / axes - math.pi / 2
    return RADAR / 2 + RADIUS * share * math.cos(angle), RADAR / 2 + RADIUS * share * math.sin(angle)


def _points(spots: Sequence[tuple[int, float]], axes: int) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in (_at(i, share, axes) for i, share in spots))


def _line(axes: Sequence[tuple[str, str]], place: int, name: str, rates: Mapping[str, Rate]) -> Markup:
    """One run: a closed area where every category has a rate, else lines between neighbours that have one; a dot for each rate."""
    shares = [(r.value if (r := rates.get(cid)) and printable(r) else None) for cid, _ in axes]
    n = len(axes)
    spots = [(i, s) for i, s in enumerate(shares) if s is not None]
    if len(spots) == n:
        drawn = Markup('<polygon class="area" points="{}"/>').format(_points(spots, n))
    else:
        edges = [((i, a), (j, b)) for i, a in spots if (b := shares[j := (i + 1) % n]) is not None]
        drawn = Markup("").join(Markup('<polyline class="edge" points="{}"/>').format(_points(edge, n)) for edge in edges)
    dots = Markup("")
    for i, share in spots:
        x, y = _at(i, share, n)
        hint = f"{name}, {axes[i][1]}: {percent(share)}, n = {rates[axes[i][0]].n_scored}"
        dots += Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3.5"><title>{}</title></circle>').format(x, y, hint)
    return Markup('<g class="{}">{}{}</g>').format(colour(place), drawn, dots)


def _axis_label(axis: int, title: str, axes: int) -> Markup:
    """A category's title outside the outermost ring, broken into lines of about a dozen letters."""
    lines = [""]
    for word in title.split():
        if lines[-1] and len(lines[-1]) + len(word) >= 13:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    x, y = _at(axis, 1.06, axes)
    side = x - RADAR / 2
    anchor = "middle" if abs(side) < RADIUS * 0.4 else "start" if side > 0 else "end"
    # a label above the middle grows upwards, one below it downwards, so that it never runs into the rings
    rise = (len(lines) - 1) * 15 * (RADAR / 2 + RADIUS - y) / (2 * RADIUS)
    spans = Markup("").join(
        Markup('<tspan x="{:.1f}" y="{:.1f}">{}</tspan>').format(x, y + 4 - rise + 15 * i, escape(line)) for i, line in enumerate(lines)
    )
    return Markup('<text class="axis" text-anchor="{}">{}</text>').format(anchor, spans)
