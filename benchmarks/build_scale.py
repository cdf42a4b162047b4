"""How fast a set is built, and how cost and memory grow with its size.

    python benchmarks/build_scale.py [--clips 400] [--most 100000] [--no-ray] [--repeats 1]

Two measurements. Rows per second with 1 and 2 Ray workers: real decoding, cutting and encoding of small clips drawn here, templates for
queries. Growth: synthetic clips (no media: fingerprints and labels drawn by chance) go from the journal through near-duplicates, labels,
queries, splits and files, 1,000 to `--most` rows; the exponent is the slope of log(CPU seconds) over log(rows), 1.0 = linear.
One JSON line last: rows_per_s_1, rows_per_s_2, growth_exponent, peak_mib (the largest build, with what it added over the smallest in
peak_growth_mib), and what they were measured on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from videosafety.dataset_builder import build as building
from videosafety.dataset_builder.config import Config, Labels, Queries, Source
from videosafety.dataset_builder.engine import LocalEngine, Phase
from videosafety.dataset_builder.journal import Journal
from videosafety.dataset_builder.lists import Lists
from videosafety.dataset_builder.rows import Bundle, Row, digest
from videosafety.lmms_eval_tasks.judge.policy import category_groups

ROWS_A_CLIP = 2  # one query in each of the two cells of its label


def config(folder: Path) -> Config:
    return Config(
        "scale",
        [Source("made", manifest="manifest.jsonl")],
        "cc0-1.0",
        labels=Labels(manifest=True),
        queries=Queries(templates=True),
        root=folder,
    )


# --- real clips, 1 and 2 workers ------------------------------------------------------------------------------------------------------


def draw(folder: Path, clips: int) -> None:
    chance = np.random.default_rng(0)
    lines = []
    for n in range(clips):
        picture = np.repeat(np.repeat(chance.integers(0, 256, (9, 16, 3)), 20, 0), 20, 1).astype(np.uint8)
        with av.open(str(folder / f"{n}.mp4"), "w") as container:
            stream = container.add_stream("libx264", rate=15, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
            for step in range(45):
                container.mux(
                    stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(np.roll(picture, 5 * step, 1)), format="rgb24"))
                )
            container.mux(stream.encode())
        lines.append(json.dumps({"file": f"{n}.mp4", "origin": str(n), "visual_label": n % 2, "category": "weapons"}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def rate(clips: int, workers: int, engine: str) -> float:
    """Rows per second of a whole build, the start of Ray left out."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw(folder, clips)
        if engine == "ray":
            import ray

            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False)
        start = time.perf_counter()
        found = building.build(config(folder), engine, workers, quiet=True)
        seconds = time.perf_counter() - start
        if engine == "ray":
            ray.shutdown()
        assert found.rows["test"] == ROWS_A_CLIP * clips, found
        return found.rows["test"] / seconds


# --- synthetic clips, growth ----------------------------------------------------------------------------------------------------------


class NoMedia(LocalEngine):
    """The engine, but for the media: what they would have come to is drawn by chance."""

    def __init__(self, clip: Path, config: Config, journal: Journal) -> None:
        super().__init__(config, journal, _nobody, 1, quiet=True)
        self._clip, self._into = clip, journal

    def run(self, phase: Phase, bundles: Iterable[Bundle], total: int | None = None) -> None:
        if phase.name != "media":
            super().run(phase, bundles, total)
            return
        for bundle in bundles:
            (row,) = bundle.rows
            made = row["provenance"] | {
                "sha256": digest(row["id"], length=64),
                "shot": [0.0, 3.0],
                "fingerprint": digest(row["id"], "print", length=64),
            }
            shot = row | {"id": digest(row["id"]), "file": str(self._clip), "duration": 3.0, "provenance": made}
            self._into.put(phase.key, [Bundle(bundle.key, [shot])])


def _nobody(server: str, messages: Any, parameters: Any) -> Any:
    raise AssertionError("nobody is asked here")


def made(clips: int) -> Iterator[Row]:
    categories = list(category_groups())
    for n in range(clips):
        told = {"visual_label": n % 2, "category": categories[n % len(categories)], "harm_spans": None}
        provenance = {"source": "made", "path": f"{n}.mp4", "origin": f"origin {n // 3}", "licence": None}
        yield {"id": f"made/{n}.mp4", "key": digest(n), "file": "", "text": f"Clip number {n}", "told": told, "provenance": provenance}


def grow(rows: int) -> None:
    """One build of so many synthetic rows, in a process of its own: prints CPU seconds and peak memory."""
    with tempfile.TemporaryDirectory() as place:
        settings = config(Path(place))
        settings.work.mkdir(parents=True)
        clip = settings.work / "clip.mp4"
        clip.write_bytes(b"no media are read here")
        journal, lists = Journal(settings.work / "journal.sqlite"), Lists(settings.work / "lists.sqlite")
        building.ingest.ingest = lambda _: made(rows // ROWS_A_CLIP)
        building.write_rows = _rows_only
        start = time.process_time()
        found = building.Build(settings, journal, lists, NoMedia(clip, settings, journal)).run()
        building.write_pages(settings, found, lists)
        seconds = time.process_time() - start
        peak = next(int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")) / 1024
        assert found.rows["test"] >= 0.999 * rows, found
        print(json.dumps({"rows": found.rows["test"], "seconds": seconds, "mib": peak}))


_write_rows = building.write_rows


def _rows_only(rows: Iterable[Row], out: Path, split: str) -> int:
    """Without a link to the one clip for each of its rows: the disk is not what is measured."""
    from videosafety.dataset_builder import write

    write.place = lambda clip, target: None  # type: ignore[assignment]
    return _write_rows(rows, out, split)


def growth(most: int, repeats: int) -> list[dict[str, float]]:
    sizes = [size for size in (1_000, 3_000, 10_000, 30_000, 100_000) if size <= most]
    points = []
    for size in sizes:
        runs = []
        for _ in range(repeats):
            done = subprocess.run([sys.executable, __file__, "--grow", str(size)], capture_output=True, text=True, check=True)
            runs.append(json.loads(done.stdout.splitlines()[-1]))
        points.append(min(runs, key=lambda run: run["seconds"]))
        print(f"{points[-1]['rows']:>7.0f} rows: {points[-1]['seconds']:8.2f} s CPU, {points[-1]['mib']:6.0f} MiB", flush=True)
    return points


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=400)
    parser.add_argument("--most", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--no-ray", action="store_true", help="threads of one process instead of Ray workers")
    parser.add_argument("--grow", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.grow:
        grow(given.grow)
        return
    points = growth(given.most, given.repeats)
    slope = (
        float(np.polyfit(np.log([p["rows"] for p in points]), np.log([p["seconds"] for p in points]), 1)[0]) if len(points) > 1 else None
    )
    engine = "local" if given.no_ray else "ray"
    rates = {workers: rate(given.clips, workers, engine) for workers in (1, 2)}
    print(
        json.dumps(
            {
                "rows_per_s_1": round(rates[1], 2),
                "rows_per_s_2": round(rates[2], 2),
                "growth_exponent": None if slope is None else round(slope, 3),
                "peak_mib": round(points[-1]["mib"], 1),
                "peak_growth_mib": round(points[-1]["mib"] - points[0]["mib"], 1),
                "rows": [p["rows"] for p in points],
                "seconds": [round(p["seconds"], 2) for p in points],
                "engine": engine,
                "clips": given.clips,
                "cpus": os.cpu_count(),
                "load": round(os.getloadavg()[0], 1),
                "machine": platform.machine(),
            }
        )
    )


if __name__ == "__main__":
    main()
