"""Speed of the lmms-eval wrapper on 64 rows of VSB-Open: against one request at a time with decode inline, and against bare generate.

    python benchmarks/pipeline.py [--rows 64] [--batch-size 16] [--repeats 3] [--device cpu]

The model is a random VideoLlama3 large enough that generating is most of the work, as it is with a real one. Everything is timed in one
process, in turns, cold frame cache each time; the medians of the paired ratios are printed as one JSON line:
speedup_vs_inline (>= 2 wanted), decodes_per_video over all four cells (1.0 wanted), overhead over bare generate on ready tensors
(<= 1.15 wanted).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lmms_eval.api.instance import Instance

from videosafety.hf_models.tiny import build_tiny
from videosafety.lmms_eval_tasks.model import VideoSafetyR1
from videosafety.lmms_eval_tasks.pipeline import Loaded, plan
from videosafety.lmms_eval_tasks.video import FrameCache, decode
from videosafety.lmms_eval_tasks.vsb import dataset as vsb

TOKENS = 64


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def instances(rows: list[dict[str, Any]]) -> list[Instance]:
    def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [{"type": "video", "url": row["video"]}, {"type": "text", "text": row["query"]}]}]

    settings = {"until": [], "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "do_sample": False}
    return [
        Instance("generate_until", ("", messages, dict(settings), i, "vsb", "test"), 0, {"task": "vsb", "doc_id": i, "repeats": 1})
        for i in range(len(rows))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--hidden-size", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    args = parser.parse_args()

    per_cell = args.rows // 4
    rows = [row for cell in vsb.CELLS for row in vsb.rows(cell)[:per_cell]]
    paths = vsb.ensure_videos(row["video_id"] for row in rows)
    rows = [row | {"video": str(paths[row["video_id"]])} for row in rows]
    videos = len({row["video"] for row in rows})

    # One core is left to the decoding threads, as a GPU would leave them all: with every core in torch's busy-waiting pool the figures
    # would be about the scheduler.
    torch.set_num_threads(max(1, (os.cpu_count() or 2) - 1))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["VIDEOSAFETY_CACHE_DIR"] = scratch
        checkpoint = build_tiny(Path(scratch) / "model", hidden_size=args.hidden_size, layers=args.layers, alarm=False)
        model = VideoSafetyR1(pretrained=str(checkpoint), batch_size=args.batch_size, device=args.device, resume=False)
        model.task_dict = {"vsb": {"test": rows}}
        requests = model._requests(instances(rows), list(range(len(rows))))
        sampling = model.frames.sampling

        def ours() -> None:
            model.frames = FrameCache(Path(tempfile.mkdtemp(dir=scratch)), sampling)
            model.journal.answers.clear()
            model.generate_until(instances(rows))

        def inline() -> None:
            for request in requests:
                loaded = [Loaded(request, [decode(video, sampling) for video in request.videos])]
                model._generate(loaded, model._inputs(loaded))

        def ready() -> list[tuple[list[Loaded], Any]]:
            cache = FrameCache(Path(tempfile.mkdtemp(dir=scratch)), sampling)
            batches = [[Loaded(r, [cache.get(v) for v in r.videos]) for r in batch] for batch in plan(list(requests), args.batch_size)]
            return [(batch, model._inputs(batch)) for batch in batches]

        tensors = ready()

        def bare() -> None:
            for batch, inputs in tensors:
                model._generate(batch, inputs)

        bare()  # warm-up
        seconds = [(timed(ours), timed(inline), timed(bare)) for _ in range(args.repeats)]
        decodes = model.frames.decodes

    print(
        json.dumps(
            {
                "speedup_vs_inline": round(statistics.median(i / o for o, i, _ in seconds), 2),
                "decodes_per_video": round(decodes / videos, 3),
                "overhead": round(statistics.median(o / b for o, _, b in seconds), 3),
                "seconds_ours": round(statistics.median(o for o, _, _ in seconds), 2),
                "seconds_inline": round(statistics.median(i for _, i, _ in seconds), 2),
                "seconds_bare": round(statistics.median(b for _, _, b in seconds), 2),
                "rows": len(rows),
                "videos": videos,
                "batch_size": args.batch_size,
                "parameters": model.model.num_parameters(),
                "device": str(model.device),
                "repeats": args.repeats,
            }
        )
    )


if __name__ == "__main__":
    main()
