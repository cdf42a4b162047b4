"""Plots of a run: which metrics stand where, gaps that stay gaps, folders that hold no run, and a page that stands alone."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from videosafety.training_recipes import plots

SFT = [
    {"step": 1, "epoch": 0.5, "loss": 2.0, "grad_norm": 3.0, "learning_rate": 1e-6, "auroc_visual": None, "auroc_textual": math.nan},
    {"step": 2, "epoch": 1.0, "loss": 1.0, "grad_norm": 2.0, "learning_rate": 5e-7, "auroc_visual": 0.75, "auroc_textual": math.nan},
    {"step": 2, "epoch": 1.0, "eval_loss": 1.5, "eval_runtime": 3.0, "note": "text"},
    {"step": 2, "epoch": 1.0, "train_runtime": 9.0, "train_loss": 1.5, "total_flos": 0.0},
]


def write(folder: Path, history: list[dict[str, Any]], name: str = plots.STATE) -> Path:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps({"log_history": history}), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("key", "title"),
    [
        ("loss", "Loss"),
        ("loss_visual", "Loss"),
        ("loss/ce", "Loss"),
        ("policy_loss", "Loss"),
        ("eval_loss", "Loss"),
        ("auroc_visual", "Alarm heads: AUROC"),
        ("eval_auroc_textual", "Alarm heads: AUROC"),
        ("accuracy_visual", "Alarm heads: share right"),
        ("lambda_visual", "Effective weight of the heads' losses"),
        ("reward", "Reward"),
        ("rewards/dra_safe/mean", "Reward"),
        ("rewards/margins", "Reward"),
        ("rewards/dra_safe/std", "Spread of rewards in a group"),
        ("reward_std", "Spread of rewards in a group"),
        ("rewards/accuracies", "Shares"),
        ("frac_zero_std", "Shares"),
        ("frac_reward_zero_std", None),  # TRL's count of what frac_zero_std says
        ("dra_safe/unscored", "Shares"),
        ("dra_safe/answer", "Terms of the reward"),
        ("completions/clipped_ratio", "Shares"),
        ("clip_ratio/region_mean", "Shares"),
        ("clip_ratio/low_mean", None),
        ("kl", "KL to the reference"),
        ("completions/mean_length", "Answer length (tokens)"),
        ("completions/max_terminated_length", None),
        ("entropy", "Entropy"),
        ("grad_norm", "Gradient norm"),
        ("learning_rate", "Learning rate"),
        ("lr_alarm_heads", "Learning rate"),
        ("num_tokens", None),
        ("step_time", None),
    ],
)
def test_every_metric_has_its_panel(key: str, title: str | None) -> None:
    panel = plots.panel_of(key)
    assert (panel and panel.title) == title


def test_values_that_are_missing_stay_gaps() -> None:
    found = plots.curves(SFT)
    assert list(found) == ["loss", "grad_norm", "learning_rate", "auroc_visual", "auroc_textual", "eval_loss"]
    assert found["loss"] == plots.Curve([1, 2], [2.0, 1.0])
    assert math.isnan(found["auroc_visual"].values[0])
    assert found["auroc_visual"].values[1] == 0.75
    rows = {row["name"]: row for row in plots.table(found)}
    assert rows["auroc_visual"] | {"step": 2} == {
        "name": "auroc_visual",
        "logged": 2,
        "empty": 1,
        "step": 2,
        "first": "0.75",
        "last": "0.75",
        "least": "0.75",
        "greatest": "0.75",
    }
    assert (rows["auroc_textual"]["empty"], rows["auroc_textual"]["last"]) == (2, "–")  # never a 0
    drawn = {panel.title: list(members) for panel, members in plots.panels(found).items()}
    assert drawn["Alarm heads: AUROC"] == ["auroc_visual"]
    assert drawn["Loss"] == ["loss", "eval_loss"]


def test_the_running_mean_does_not_lag() -> None:
    line = [float(n) for n in range(50)]
    assert plots.running_mean(line, 9) == line
    assert plots.running_mean([1.0, math.nan, 3.0], 3)[1] == 2.0
    assert math.isnan(plots.running_mean([math.nan], 3)[0])


def test_a_long_run_is_drawn_pale_with_a_mean_over_it() -> None:
    figure = plots.draw({"reward": plots.Curve(list(range(120)), [n % 2 for n in range(120)])}, "run")
    pale, mean = figure.axes[0].lines
    assert pale.get_alpha() < 1
    assert all(abs(value - 0.5) < 0.2 for value in mean.get_ydata()[5:-5])


class Links(HTMLParser):
    found: list[str]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "iframe")
        self.found += [value or "" for name, value in attrs if name in ("src", "href")]


def test_picture_and_page(tmp_path: Path) -> None:
    run = write(tmp_path / "<b>run", SFT)
    facts = {"recipe": {"model": "<script>alert(1)</script>", "train": ["a", "b"], "revision": None}}
    (run / plots.RECIPE).write_text(json.dumps(facts), encoding="utf-8")
    image, page = plots.plot(run)
    with Image.open(image) as picture:
        assert min(picture.size) > 300
        assert len(set(picture.convert("L").resize((64, 64)).tobytes())) > 5  # something is drawn
    text = page.read_text(encoding="utf-8")
    links = Links()
    links.found = []
    links.feed(text)
    assert len(links.found) == 4  # one a panel
    assert all(link.startswith("data:image/svg+xml;base64,") for link in links.found)
    assert "&lt;script&gt;alert(1)" in text
    assert "&lt;b&gt;run: 2 optimizer steps" in text
    assert re.search(r"<td>recipe.train</td><td>a, b</td>", text)
    assert "recipe.revision" not in text


def test_a_run_that_is_under_way_is_read_from_its_newest_checkpoint(tmp_path: Path) -> None:
    for step in (5, 10, 9):
        write(tmp_path, [{"step": step, "loss": 1.0}], f"checkpoint-{step}/{plots.STATE}")
    file, history = plots.read_history(tmp_path)
    assert (file.parent.name, history[0]["step"]) == ("checkpoint-10", 10)
    write(tmp_path, [{"step": 12, "loss": 1.0}])
    assert plots.read_history(tmp_path)[1][0]["step"] == 12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no trainer_state.json"),
        ("{", "no log history that can be read"),
        ("[]", "no log history that can be read"),
        ('{"log_history": 3}', "a list of objects"),
        ('{"log_history": [{"loss": 1.0}]}', "each with its step"),
        ('{"log_history": []}', "nothing to draw"),
        ('{"log_history": [{"step": 1, "num_tokens": 5}]}', "nothing to draw: the log history holds num_tokens"),
        ('{"log_history": [{"step": 1, "loss": null}]}', "nothing to draw: the log history holds loss"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / plots.STATE).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        plots.plot(tmp_path)
    assert not (tmp_path / "plots.png").exists()


def test_the_command_says_it_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "videosafety.training_recipes.plots", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert done.stderr.startswith("videosafety: ")
    assert done.stderr.count("\n") == 1
