"""Small moving clips and whole projects around them, for the tests of builds."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml

_APP = "import typer; from videosafety import data_build as d; app = typer.Typer(); app.command()(d.build); app.command()(d.review); app()"
CLI = [sys.executable, "-c", _APP]


def write_clip(path: Path, seed: int, shots: int = 1, seconds: float = 1.5, fps: int = 8, size: tuple[int, int] = (96, 64)) -> Path:
    """A clip of coloured noise blocks that move, in shots of other colours; every seed looks like another video."""
    chance = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.thread_count = 1  # the same bytes each time
        for shot in range(shots):
            tint = np.array([shot & 1, shot >> 1 & 1, 0]) * 127
            picture = np.repeat(np.repeat(chance.integers(0, 128, (4, 6, 3)) + tint, 16, 0), 16, 1).astype(np.uint8)
            for n in range(round(seconds * fps)):
                moved = np.roll(picture, 3 * n, 1)
                for packet in stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(moved), format="rgb24")):
                    container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def project(folder: Path, url: str, clips: int = 4, **changes: Any) -> Path:
    """A folder with clips, half of them of HARM, a manifest, and a config whose parts are all played by the server; the config's path."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    lines = []
    for n in range(clips):
        write_clip(folder / "videos" / f"{n}.mp4", seed=n)
        os.utime(folder / "videos" / f"{n}.mp4", (n, n))  # the same files in two projects are the same to the journal
        title = f"Clip {n}" + (" of HARM" if n % 2 else "")
        lines.append({"file": f"{n}.mp4", "origin": f"channel {n}", "title": title, "category": "weapons" if n % 2 else "cyber"})
    (folder / "videos" / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    body: dict[str, Any] = {
        "name": "toy",
        "licence": "cc-by-4.0",
        "sources": [{"name": "mine", "manifest": "videos/manifest.jsonl"}],
        "servers": {
            "writer": {"url": url, "model": "writer-1", "family": "north", "revision": "abc"},
            "judge": {"url": url, "model": "judge-1", "family": "south"},
            "other": {"url": url, "model": "judge-2", "family": "west"},
        },
        "labels": {"judges": [{"server": "judge", "frames": 2}, {"server": "other", "frames": 0}]},
        "queries": {"server": "writer", "check": "judge"},
        "splits": {"test": 1.0},
    }
    for key, value in changes.items():
        if value is None:
            body.pop(key, None)
        else:
            body[key] = value
    file = folder / "build.yaml"
    file.write_text(yaml.safe_dump(body, sort_keys=False), encoding="utf-8")
    return file


def rows(out: Path, split: str = "vsb") -> list[dict[str, Any]]:
    file = out / split / "rows.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]] if file.is_file() else []


def report(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "report.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def comparable(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without the identity of their config, which holds the address of the server."""
    kept = []
    for row in found:
        made = json.loads(row["provenance"])
        kept.append(row | {"provenance": {key: value for key, value in made.items() if key != "config"}})
    return kept
