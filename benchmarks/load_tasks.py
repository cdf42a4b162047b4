"""What our folder costs lmms-eval at its start: building a TaskManager with and without it, in turns.

    python benchmarks/load_tasks.py [--repeats 7]

Everything is timed in one process, each way first as often, after one round that is not counted. Seconds are CPU seconds of this process,
which other work on the machine does not change: building a TaskManager is one thread that reads YAML. The medians are printed as one JSON
line: added_seconds (< 0.3 wanted) is the median of the paired differences, ratio of the paired quotients, added_wall_seconds the same by
the clock; also the time to index our folder alone, and to load every YAML in full, with its functions imported.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmms_eval.tasks
from lmms_eval.utils import load_yaml_config
from loguru import logger

from videosafety.lmms_eval_tasks.plugin import TASKS

# Our hook is taken out, so that the two ways differ in nothing but include_path.
MANAGER = lmms_eval.tasks.TaskManager
MANAGER.__init__ = getattr(MANAGER.__init__, "__wrapped__", MANAGER.__init__)  # type: ignore[method-assign]


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """CPU seconds and seconds by the clock."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    logger.remove()

    ways: dict[str, Callable[[], Any]] = {"without": MANAGER, "with": lambda: MANAGER(include_path=TASKS)}
    rounds = []
    for number in range(repeats + 1):
        order = sorted(ways, reverse=bool(number % 2))
        rounds.append({way: timed(ways[way]) for way in order})
        print({way: f"{cpu:.3f} s ({wall:.3f} s by the clock)" for way, (cpu, wall) in rounds[-1].items()}, file=sys.stderr)
    rounds = rounds[1:]

    manager = MANAGER(include_defaults=False)
    index = manager._get_task_and_group(TASKS)
    listing = [timed(lambda: manager._get_task_and_group(TASKS))[0] for _ in range(repeats)]
    files = [Path(entry["yaml_path"]) for entry in index.values() if entry["yaml_path"] != -1]
    full, _ = timed(lambda: [load_yaml_config(str(file), mode="full") for file in files])
    kinds = [entry["type"] for entry in index.values()]
    print(
        json.dumps(
            {
                "added_seconds": round(statistics.median(r["with"][0] - r["without"][0] for r in rounds), 3),
                "ratio": round(statistics.median(r["with"][0] / r["without"][0] for r in rounds), 3),
                "added_wall_seconds": round(statistics.median(r["with"][1] - r["without"][1] for r in rounds), 3),
                "without_seconds": round(statistics.median(r["without"][0] for r in rounds), 3),
                "index_seconds": round(statistics.median(listing), 3),
                "load_in_full_seconds": round(full, 3),
                "tasks": kinds.count("task"),
                "groups": kinds.count("group"),
                "repeats": repeats,
            }
        )
    )


if __name__ == "__main__":
    main()
