"""The curves of a run, from the log history that trainers keep: losses, rewards, KL, lengths and heads in one PNG and one HTML page.

python -m videosafety.training_recipes.plots RUN_DIR
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STATE, RECIPE = "trainer_state.json", "training_recipe.json"
TEMPLATE = "plots.html.jinja"
# Okabe and Ito's colours, told apart by colour-blind readers too
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#7f7f7f")
NOT_A_CURVE = re.compile(r"step|epoch|total_flos|(train|eval)_(runtime|samples_per_second|steps_per_second|loss_at_end)|train_loss")
SMOOTHED_FROM = 100  # points from which a running mean over a SMOOTHED_SHARE-th of them is drawn over the pale curve
SMOOTHED_SHARE = 30


class Panel(NamedTuple):
    """One plot. keys: which metrics are in it; log: a logarithmic axis; whole: an axis from 0 to 1."""

    title: str
    keys: str
    log: bool = False
    whole: bool = False


PANELS = (  # a metric is in the first panel that it fits, and in the table only where it fits none
    Panel("Loss", r"(.*[_/])?loss([_/].*)?"),
    Panel("Alarm heads: AUROC", r".*auroc.*", whole=True),
    Panel("Alarm heads: share right", r".*(alarm|head|visual|textual).*accuracy.*|accuracy[_/](visual|textual).*", whole=True),
    Panel("Effective weight of the heads' losses", r"lambda_.*"),
    Panel("Reward", r"reward|rewards/(?!.*(/std|accuracies)$).*"),
    Panel("Terms of the reward", r"dra_(safe|paper)/(?!unscored).*"),
    Panel("Spread of rewards in a group", r"reward_std|rewards/.*/std"),
    Panel("KL to the reference", r"(.*[_/])?kl"),
    Panel("Answer length (tokens)", r"completions?/(?!.*terminated).*length"),
    Panel("Entropy", r"(.*[_/])?entropy"),
    Panel("Shares", r"(?!clip_ratio/(low|high)|frac_reward_zero_std).*(accurac|ratio|frac_|share|unscored).*", whole=True),
    Panel("Log-probabilities of answers", r"logps/.*"),
    Panel("Gradient norm", r"grad_norm", log=True),
    Panel("Learning rate", r"(.*[_/])?(learning_rate|lr)([_/].*)?"),
)


class Curve(NamedTuple):
    """One metric over optimizer steps; a value that was null or not finite is NaN: a gap."""

    steps: list[int]
    values: list[float]


def read_history(run: str | Path) -> tuple[Path, list[dict[str, Any]]]:
    """The log history of a run, and the file that holds it: that of the folder, else that of its newest checkpoint.

    Raises:
        ValueError: none there, or not a trainer's.
    """
    run = Path(run)
    checkpoints = sorted(run.glob(f"checkpoint-*/{STATE}"), key=lambda file: int(re.sub(r"\D", "", file.parent.name) or 0))
    file = next((file for file in (run / STATE, *reversed(checkpoints)) if file.is_file()), None)
    if file is None:
        raise ValueError(f"{run}: no {STATE} there or in a checkpoint of it: name the output_dir of a run that has logged something")
    try:
        history = json.loads(file.read_text(encoding="utf-8"))["log_history"]  # json reads NaN, which trainers write
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: no log history that can be read ({type(error).__name__}: {error})") from error
    if not isinstance(history, list) or not all(isinstance(line, dict) and isinstance(line.get("step"), int) for line in history):
        raise ValueError(f"{file}: log_history must be a list of objects, each with its step")
    return file, history


def curves(history: Sequence[Mapping[str, Any]]) -> dict[str, Curve]:
    """Each metric's curve, in the order of first appearance. Totals at the end of a run are none, and neither are texts."""
    found: dict[str, Curve] = {}
    for line in history:
        for key, value in line.items():
            if NOT_A_CURVE.fullmatch(key) or isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
                continue
            steps, values = found.setdefault(key, Curve([], []))
            steps.append(line["step"])
            values.append(float(value) if value is not None and math.isfinite(value) else math.nan)
    return found


def panel_of(key: str) -> Panel | None:
    """The panel that a metric is drawn in; `eval_` before a name changes nothing."""
    return next((panel for panel in PANELS if re.fullmatch(panel.keys, key.removeprefix("eval_"))), None)


def panels(found: Mapping[str, Curve]) -> dict[Panel, dict[str, Curve]]:
    """The panels that hold a number, in the order of PANELS."""
    known = {key: curve for key, curve in found.items() if not all(map(math.isnan, curve.values))}
    drawn = {panel: {key: curve for key, curve in known.items() if panel_of(key) is panel} for panel in PANELS}
    return {panel: members for panel, members in drawn.items() if members}


def _draw(axes: Axes, panel: Panel, members: Mapping[str, Curve]) -> None:
    from matplotlib.ticker import MaxNLocator

    names = list(dict.fromkeys(key.removeprefix("eval_") for key in members))
    for key, (steps, values) in members.items():
        colour = COLOURS[names.index(key.removeprefix("eval_")) % len(COLOURS)]
        style: dict[str, Any] = {"color": colour, "linestyle": "--" if key.startswith("eval_") else "-"}
        if many := len(steps) >= SMOOTHED_FROM:
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.8)
        shown = running_mean(values, len(values) // SMOOTHED_SHARE) if many else values
        axes.plot(steps, shown, label=key, marker=None if len(steps) > 30 else "o", markersize=3, linewidth=1.6, **style)
    if panel.log and all(value > 0 for curve in members.values() for value in curve.values if not math.isnan(value)):
        axes.set_yscale("log")
    if panel.whole:
        axes.set_ylim(-0.03, 1.03)
    axes.set_title(panel.title, fontsize=11, loc="left", fontweight="bold")
    axes.set_xlabel("optimizer step", fontsize=9)
    axes.tick_params(which="both", labelsize=8)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, frameon=False)


def running_mean(values: Sequence[float], over: int) -> list[float]:
    """At each place the mean of the numbers among about `over` values around it; NaN where none of them is one."""
    found = []
    for place in range(len(values)):
        side = min(over // 2, place, len(values) - 1 - place)  # as many before as behind: a trailing mean would lag
        window = [value for value in values[place - side : place + side + 1] if not math.isnan(value)]
        found.append(sum(window) / len(window) if window else math.nan)
    return found


def draw(found: Mapping[str, Curve], title: str) -> Figure:
    """All panels in one figure, three beside each other.

    Raises:
        ValueError: nothing of what was logged fits a panel.
    """
    drawn = panels(found)
    if not drawn:
        raise ValueError(f"nothing to draw: the log history holds {', '.join(found) or 'no metric'}")
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure = _figure(4.6 * columns, 3.1 * rows + 0.4)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    for place, (panel, members) in enumerate(drawn.items(), 1):
        _draw(figure.add_subplot(rows, columns, place), panel, members)
    return figure


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")  # not pyplot, which keeps figures in a global state
    FigureCanvasAgg(figure)
    return figure


def page(found: Mapping[str, Curve], title: str, facts: Mapping[str, Any]) -> str:
    """The HTML page: each panel as a picture inside it, a table of all metrics, and the resolved recipe where it is known.

    It loads nothing from anywhere and holds no script.
    """
    pictures = []
    for panel, members in panels(found).items():
        figure = _figure(5.6, 3.3)
        _draw(figure.add_subplot(), panel, members)
        text = io.BytesIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
        pictures.append({"title": panel.title, "names": list(members), "source": base64.b64encode(text.getvalue()).decode()})
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(TEMPLATE).render(title=title, pictures=pictures, table=table(found), facts=flat(facts))


def table(found: Mapping[str, Curve]) -> list[dict[str, Any]]:
    """Each metric in numbers: how often it was logged, how often without a value, first, last, least and greatest value."""
    lines = []
    for key, (steps, values) in found.items():
        known = [value for value in values if not math.isnan(value)]
        spread = {"first": known[:1], "last": known[-1:], "least": sorted(known)[:1], "greatest": sorted(known)[-1:]}
        words = {name: f"{value[0]:.4g}" if value else "–" for name, value in spread.items()}
        lines.append({"name": key, "logged": len(values), "empty": len(values) - len(known), "step": steps[-1], **words})
    return lines


def flat(facts: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted name, text); what is None or empty is left out."""
    found: list[tuple[str, str]] = []
    for key, value in facts.items():
        if isinstance(value, Mapping):
            found += flat(value, f"{before}{key}.")
        elif value not in (None, "", []):
            found.append((f"{before}{key}", ", ".join(map(str, value)) if isinstance(value, list) else str(value)))
    return found


def plot(run: str | Path) -> tuple[Path, Path]:
    """Write `plots.png` and `plots.html` into the folder of a run, and return both.

    Raises:
        ValueError: no log history there, or nothing in it to draw.
    """
    run = Path(run)
    _, history = read_history(run)
    found = curves(history)
    recipe = run / RECIPE
    facts = json.loads(recipe.read_text(encoding="utf-8")) if recipe.is_file() else {}
    title = f"{run.resolve().name}: {max(line['step'] for line in history)} optimizer steps" if history else run.resolve().name
    image, text = run / "plots.png", run / "plots.html"
    draw(found, title).savefig(image, dpi=120)
    text.write_text(page(found, title, facts), encoding="utf-8")
    return image, text


def main(argv: Sequence[str] | None = None) -> None:
    """Draw the curves of a finished or running training run."""
    parser = argparse.ArgumentParser(prog="python -m videosafety.training_recipes.plots", description=main.__doc__)
    parser.add_argument("run", type=Path, help="output_dir of the run")
    try:
        image, text = plot(parser.parse_args(argv).run)
    except ValueError as error:
        raise SystemExit(f"videosafety: {error}") from error
    print(f"{image}\n{text}")


if __name__ == "__main__":
    main()
