"""Speed of judging: 500 answers by a judge that takes 100 ms a call, against one call at a time and against four threads.

    python benchmarks/judge_throughput.py [--answers 500] [--delay 0.1] [--rows 50000] [--repeats 3]

One call at a time is what lmms-eval does with a judge in `process_results` up to 0.7.2, four threads are the default of 0.7.3; both send
the same prompts to the same server through the same client library, and their verdicts are compared with ours. All are timed with their
client warm; ours is the median of some runs, each with an empty cache. Then the same answers are judged again, and a judge that replies
at once judges 50,000 rows while the process's memory is watched: with each record let go (`mib_per_10k_rows`: what judging itself keeps),
and as lmms-eval does it, which keeps every record (`mib_per_10k_rows_with_records`). The last line is JSON: speedup_vs_serial (>= 25
wanted), speedup_vs_default (>= 5 wanted), second_run_calls (0 wanted), mib_per_10k_rows.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import openai

from videosafety.lmms_eval_tasks.judge.llm import RESPONSE_FORMAT, LlmJudge, parse
from videosafety.lmms_eval_tasks.judge.pending import Pending, submit
from videosafety.lmms_eval_tasks.judge.prompt import Template
from videosafety.lmms_eval_tasks.judge.verdict import Item, Label, Verdict

SERVER = Path(__file__).resolve().parents[1] / "tests" / "fault_server.py"
CHUNK = 10_000  # rows between two looks at the memory


@contextmanager
def server(delay: float) -> Iterator[str]:
    """The base URL of a judge in a process of its own, so that it does not share our interpreter."""
    command = [sys.executable, str(SERVER), "--delay", str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            yield child.stdout.readline().strip()
        finally:
            child.kill()


def calls(url: str) -> int:
    with urllib.request.urlopen(f"{url.removesuffix('/v1')}/calls") as reply:
        return json.load(reply)["calls"]


def items(n: int) -> list[Item]:
    return [
        Item(f"How would I do thing number {i}?", f"Answer {i}. {'HARM' if i % 3 == 0 else 'No.'} " + "More words. " * 60) for i in range(n)
    ]


def blocking(url: str) -> Callable[[Item], Label]:
    """A judge as tasks of lmms-eval have it: a call that waits, on the thread that asks."""
    client, template = openai.OpenAI(base_url=url, api_key="none"), Template("verdict.jinja")

    def judge(item: Item) -> Label:
        messages = template.render(item).messages([])
        reply = client.chat.completions.create(model="m", messages=messages, response_format=RESPONSE_FORMAT, temperature=0, max_tokens=512)
        said = parse(reply.choices[0].message.content or "")
        assert said is not None
        return said[0]

    return judge


def timed(work: Callable[[], list[Label]]) -> tuple[float, list[Label]]:
    start = time.perf_counter()
    labels = work()
    return time.perf_counter() - start, labels


def record(item: Item, judge: object) -> Pending:
    base = {"id": item.query, "category": item.category, "score": None}
    return Pending(base, submit(judge, item), lambda verdict: {"label": verdict.label, "raw": verdict.raw})  # type: ignore[arg-type]


class InstantJudge:
    """A remote judge without a server."""

    id = "instant@1"

    def key(self, item: Item) -> str:
        return hashlib.sha256(item.answer.encode()).hexdigest()

    async def judge(self, item: Item) -> Verdict:
        return Verdict(Label.SAFE, judge=self.id, raw='{"verdict": "safe", "stance": "refuses"}')

    async def close(self) -> None:
        return None


def resident() -> float:
    """MiB of memory that the process has."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20


def growth(rows: int, keep: bool) -> float:
    """MiB of memory that 10,000 rows add, from the first 10,000 on."""
    judge, kept, seen = InstantJudge(), [], []
    for start in range(0, rows, CHUNK):
        chunk = [record(Item(f"q{i} {keep}", f"a{i} {keep}"), judge) for i in range(start, start + CHUNK)]
        assert all(row.resolve()["label"] is Label.SAFE for row in chunk)
        kept += chunk if keep else []
        del chunk
        seen.append(resident())
    return (seen[-1] - seen[0]) / (len(seen) - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=500)
    parser.add_argument("--delay", type=float, default=0.1, help="seconds a call")
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours")
    args = parser.parse_args()

    rows = items(args.answers)
    with tempfile.TemporaryDirectory() as scratch, server(args.delay) as url:
        os.environ["VIDEOSAFETY_CACHE_DIR"] = scratch
        judge, wait = LlmJudge.local(f"{url}#m"), blocking(url)

        def ours() -> list[Label]:
            return [row.resolve()["label"] for row in [record(item, judge) for item in rows]]

        def default() -> list[Label]:
            with ThreadPoolExecutor(4) as threads:
                return list(threads.map(wait, rows))

        warm = Item("warm-up", "warm-up")
        record(warm, judge).resolve()
        wait(warm)

        runs, start = [], calls(url)
        for run in range(args.repeats):
            os.environ["VIDEOSAFETY_CACHE_DIR"] = f"{scratch}/{run}"
            runs.append(timed(ours))
        before = calls(url)
        again, verdicts_again = timed(ours)
        second_run_calls = calls(url) - before
        seconds = statistics.median(taken for taken, _ in runs)
        seconds_default, verdicts_default = timed(default)
        seconds_serial, verdicts_serial = timed(lambda: list(map(wait, rows)))
        expected = [Label.UNSAFE if "HARM" in item.answer else Label.SAFE for item in rows]
        everybody = [verdicts_again, verdicts_default, verdicts_serial, *(verdicts for _, verdicts in runs)]
        mib = growth(args.rows, keep=False)
        mib_with_records = growth(args.rows, keep=True)

    result = {
        "speedup_vs_serial": round(seconds_serial / seconds, 1),
        "speedup_vs_default": round(seconds_default / seconds, 1),
        "second_run_calls": second_run_calls,
        "mib_per_10k_rows": round(mib, 2),
        "mib_per_10k_rows_with_records": round(mib_with_records, 2),
        "identical_verdicts": all(verdicts == expected for verdicts in everybody),
        "first_run_calls": (before - start) // args.repeats,
        "seconds": round(seconds, 2),
        "seconds_second_run": round(again, 2),
        "seconds_default": round(seconds_default, 2),
        "seconds_serial": round(seconds_serial, 2),
        "seconds_all": [round(taken, 2) for taken, _ in runs],
        "answers": args.answers,
        "delay": args.delay,
        "rows": args.rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
