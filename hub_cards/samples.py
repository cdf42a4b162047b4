"""The rows behind published figures: verdicts and hashes only, or, asked for and behind a gate, what was said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from huggingface_hub import DatasetCardData

from videosafety.hub_cards.dataset import DATA, environment
from videosafety.hub_cards.lines import Line, public, to_table
from videosafety.hub_cards.upload import PublishError, Upload
from videosafety.lmms_eval_tasks.catalog import DataSet, catalog
from videosafety.lmms_eval_tasks.report.load import Run, Sample
from videosafety.lmms_eval_tasks.report.sets import set_of
from videosafety.lmms_eval_tasks.report.summary import outcome, reason_of

RESULTS = "results.parquet"
KEPT_FIELDS = ("id", "cell", "category", "group", "language", "video_id", "visual_label", "textual_label", "p_unsafe", "stance")
GATE_PROMPT = (
    "These are answers of a model to harmful queries; some of them may be harmful. By asking for access you agree to use them to study the "
    "safety of models and judges, and not to pass them on without this gate."
)
GATE_FIELDS = {"Name": "text", "Affiliation": "text", "Country": "country", "I will use them only to study safety": "checkbox"}
SCHEMA = pyarrow.schema(
    [(name, pyarrow.string()) for name in ("task", "id", "cell", "category", "group", "language", "video_id")]
    + [(name, pyarrow.int64()) for name in ("visual_label", "textual_label")]
    + [("metric", pyarrow.string()), ("score", pyarrow.float64())]
    + [(name, pyarrow.string()) for name in ("verdict", "reason", "stance")]
    + [("p_unsafe", pyarrow.float64())]
    + [(name, pyarrow.string()) for name in ("judge", "query_sha256", "answer_sha256")]
)
SAID = pyarrow.schema([(name, pyarrow.string()) for name in ("query", "answer", "detail")])


def make(runs: Sequence[Run], lines: Sequence[Line], repo: str, model: str, scratch: Path, with_samples: bool) -> Upload:
    """A data set of a model's verdicts: results.parquet, one split of rows a task, and a card. `with_samples`: with text, gated, no viewer.

    Raises:
        PublishError: a run without --log_samples.
    """
    if bare := sorted({name for run in runs for name, task in run.tasks.items() if task.samples is None}):
        raise PublishError(f"no rows to publish for {', '.join(bare)}: run with --log_samples, or leave --samples-repo out")
    schema = pyarrow.unify_schemas([SCHEMA, SAID]) if with_samples else SCHEMA
    (scratch / DATA).mkdir(parents=True, exist_ok=True)
    files: dict[str, bytes | Path] = {}
    counts: dict[str, int] = {}
    for run in runs:
        for name, task in run.tasks.items():
            ours = shareable(run, name)
            rows = [row_of(sample, with_samples, ours) for sample in task.samples or ()]
            path = scratch / DATA / f"{name}-00000-of-00001.parquet"
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows, schema=schema), path, compression="zstd")
            files[f"{DATA}/{path.name}"], counts[name] = path, len(rows)
    pyarrow.parquet.write_table(to_table(lines), scratch / RESULTS)
    files[RESULTS] = scratch / RESULTS
    files["README.md"] = card(lines, counts, repo, model, with_samples).encode()
    message = f"Verdicts of {model} on {len(counts)} tasks"
    return Upload(repo, "dataset", files, message, "auto" if with_samples else None, owned=(DATA,))


def row_of(sample: Sample, with_samples: bool, with_query: bool) -> dict[str, Any]:
    """One row. Without text, hashes tell whether two models gave the same answer, and a reader who has the text which row it is."""
    record = sample.record
    row = {name: record.get(name) for name in KEPT_FIELDS}
    row |= {
        "task": sample.task,
        "metric": sample.metric,
        "score": sample.score,
        "verdict": outcome(sample),
        "reason": reason_of(sample) if sample.score is None else None,
        "judge": public(str(record.get("judge") or "")) or None,
        "query_sha256": _hash(sample.query),
        "answer_sha256": _hash(sample.answer),
    }
    row = {
        name: None if value is None else str(value) if SCHEMA.field(name).type == pyarrow.string() else value for name, value in row.items()
    }
    if not with_samples:
        return row
    return row | {
        "query": _text(sample.query) if with_query else None,
        "answer": _text(sample.answer),
        "detail": public(str(record.get("detail") or "")) or None,
    }


def shareable(run: Run, task: str) -> bool:
    """Whether a task's queries may be passed on: not those of a gated set, nor of somebody's own set that was read in place of VSB-Open."""
    known = catalog().get(set_of(task))
    noted = (run.settings.get("data") or {}).get(set_of(task)) or {}
    return known is not None and known.gate is None and (known.source.kind != "own" or "hash" in noted)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", errors="surrogatepass")).hexdigest()


def _text(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode("utf-8")  # a lone surrogate is no UTF-8


def card(lines: Sequence[Line], counts: dict[str, int], repo: str, model: str, with_samples: bool) -> str:
    """The README of a data set of verdicts."""
    data: dict[str, Any] = {
        "pretty_name": f"Safety verdicts of {model}",
        "tags": ["videosafety", "safety", "evaluation-results", *(["not-for-all-audiences"] if with_samples else [])],
        "configs": [
            {
                "config_name": "rows",
                "default": True,
                "data_files": [{"split": name, "path": f"{DATA}/{name}-*.parquet"} for name in counts],
            },
            {"config_name": "results", "data_files": [{"split": "results", "path": RESULTS}]},
        ],
    }
    if with_samples:
        data |= {
            "viewer": False,
            "extra_gated_heading": "Ask for access to these answers",
            "extra_gated_prompt": GATE_PROMPT,
            "extra_gated_fields": GATE_FIELDS,
            "extra_gated_button_content": "Agree and ask for access",
        }
    template = environment().get_template("samples.md.jinja")
    return template.render(
        metadata=DatasetCardData(**data).to_yaml(),
        model=model,
        repo=repo,
        lines=lines,
        counts=counts,
        with_samples=with_samples,
        sets=list(_sets(lines)),
        version=version("videosafety"),
    )


def _sets(lines: Sequence[Line]) -> Iterator[DataSet]:
    for name in dict.fromkeys(line.dataset for line in lines):
        if name in catalog():
            yield catalog()[name]
