"""What the publishing tests share: the commands as the user types them, a small set of one's own, a process sent to the test Hub."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner, Result

from hub_server import Hub
from videosafety import publish_data
from videosafety.lmms_eval_tasks.vsb.render import write_clip

app = typer.Typer(pretty_exceptions_enable=False)
app.command("dataset")(publish_data.dataset)
app.command("results")(publish_data.results)
app.command("leaderboard")(publish_data.leaderboard)


def publish(*args: str | Path) -> Result:
    """`videosafety publish …` in this process; what it raises beyond an exit is raised here."""
    done = CliRunner().invoke(app, [str(arg) for arg in args])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def published(*args: str | Path) -> str:
    """The same, of a command that works: what it printed."""
    done = publish(*args)
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*args: str | Path) -> str:
    """The same, of a command that ends in one clear line: that line."""
    done = publish(*args)
    assert done.exit_code == 2, done.output
    said = [line for line in done.stderr.splitlines() if line.startswith("videosafety: ")]
    assert len(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return said[0]


def own_rows() -> list[dict[str, Any]]:
    """Five rows in two cells; the first two share a video."""
    harmful = {"cell": "hh", "category": "weapons", "group": "violence", "language": "en", "visual_label": 1, "textual_label": 1}
    safe = {"cell": "safeq", "category": "weapons", "language": "en", "visual_label": 0, "textual_label": 0, "harm_spans": []}
    rows = [harmful | {"id": f"h{n}", "query": f"Harmful question {n}", "video": f"clips/{v}.mp4"} for n, v in enumerate("aab")]
    rows = [row | {"harm_spans": [[0.5, 1.5]]} for row in rows]
    return rows + [safe | {"id": f"s{n}", "query": f"Nice question {n}, 你好 | <b>", "video": "clips/c.mp4"} for n in range(2)]


def own_set(folder: Path, change: Callable[[list[dict[str, Any]]], Any] | None = None) -> Path:
    """A local set as in VIDEOSAFETY_DATA_DIR; `change` edits its rows before they are written."""
    rows = own_rows()
    if change:
        change(rows)
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for n, name in enumerate("abc"):
        write_clip([{"seconds": 1.0 + n / 2, "background": "plain", "card": f"CLIP {name.upper()}"}], folder / "clips" / f"{name}.mp4")
    return folder


def elsewhere(hub: Hub, home: Path, code: str, **env: str) -> Any:
    """What a fresh process prints last, as JSON: `code` runs there against the test Hub."""
    done = subprocess.run([sys.executable, "-c", code], env=hub.env(home) | env, capture_output=True, text=True, timeout=200, cwd=home)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])
