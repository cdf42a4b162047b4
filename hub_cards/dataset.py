"""`videosafety publish dataset`: a safety set as Parquet with its clips inside, one split a cell, with card, gate and Croissant file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import yaml
from datasets import Features, Video
from huggingface_hub import DatasetCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from videosafety.hub_cards.croissant import croissant
from videosafety.hub_cards.safety_set import SafetySet, tables
from videosafety.hub_cards.upload import PublishError, Upload

FACTS, CROISSANT, BENCHMARK = "videosafety.json", "croissant.json", "eval.yaml"
DATA = "data"  # the folder of the Parquet files: data/<split>-<part>-of-<parts>.parquet
SHARD = 400 * 2**20  # bytes of clips in one Parquet file at most, but for the last row of it
ROW_GROUP = 10  # rows that are read at once: as `datasets` writes video
TASK_CELLS = ("hh", "sh", "hs", "safeq")  # cells with a task vsb_<cell>
KINDS = {"harm_spans": pyarrow.list_(pyarrow.list_(pyarrow.float64()))}  # where the rows may not tell: all of them may be empty
LANGUAGE_UNKNOWN = "und"  # ISO 639-2 for undetermined

# The Hub's names for how many rows a set has: upper bound -> name.
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"), (10_000_000, "1M<n<10M"))

# The form that a reader fills in (hub-docs, datasets-gated.md: text, checkbox, country, date_picker, select).
GATE_PROMPT = (
    "This data set names harms, and its videos may show them, so that the safety of models can be measured. By asking for access you agree "
    "to use it for that, not to train a model to cause harm, and not to pass it on without this gate."
)
GATE_FIELDS: dict[str, Any] = {
    "Name": "text",
    "Affiliation": "text",
    "Country": "country",
    "I want to use it for": {"type": "select", "options": ["Evaluating a model", "Making a model safer", "Research on judges", "Other"]},
    "I will use it only to measure or improve safety": "checkbox",
    "I will not pass it on without this gate": "checkbox",
}


@dataclass(frozen=True)
class Made:
    """What goes up, and the card beside it for the eye."""

    upload: Upload
    card: str
    croissant_check: str


def make(
    found: SafetySet,
    repo: str,
    scratch: Path,
    *,
    gate: str | None = None,
    public: bool = False,
    benchmark: str | None = None,
) -> Made:
    """Everything of the repository, in `scratch` and in memory; the same set gives the same bytes.

    Args:
        gate: auto or manual; a set with harm in it is gated (auto) in any case.
        benchmark: name of the evaluation framework in eval.yaml; no such file without it, because the Hub checks the name at push against a
            list of its own (huggingface.js, packages/tasks/src/eval.ts), in which lmms-eval was not when this was written.

    Raises:
        PublishError: a video that cannot be read, or columns that do not fit.
    """
    gate = gate or ("auto" if found.harmful else None)
    files: dict[str, bytes | Path] = {path.relative_to(scratch).as_posix(): path for path in write_parquet(found, scratch)}
    files[FACTS] = _json(found.facts())
    described, check = croissant(
        found, repo, {name: path for name, path in files.items() if isinstance(path, Path)}, columns(found).arrow_schema
    )
    files[CROISSANT] = _json(described)
    if benchmark:
        files[BENCHMARK] = eval_yaml(found, benchmark).encode()
    text = card(found, repo, gate, check, benchmark)
    files["README.md"] = text.encode()
    message = f"{found.title}{f' {found.version}' if found.version else ''}, {found.hash}"
    return Made(Upload(repo, "dataset", files, message, gate, public, owned=(DATA,)), text, check)


# --- Parquet ------------------------------------------------------------------------------------------------------------------------


def columns(found: SafetySet) -> Features:
    """The columns of all splits: those of the rows, and `video` where there are clips. Raises PublishError where they do not fit."""
    rows = [_plain(row) for row in found.all_rows]
    keys = dict.fromkeys(key for row in rows for key, value in row.items() if value is not None)
    try:
        table = pyarrow.table({key: pyarrow.array([row.get(key) for row in rows], KINDS.get(key)) for key in keys})
    except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
        raise PublishError(f"{found.title}: a column holds values of several kinds ({error}); make them one kind") from error
    features = Features.from_arrow_schema(table.schema)
    return Features({**features, **({"video": Video()} if found.clips else {})})


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "video"}


def write_parquet(found: SafetySet, scratch: Path) -> list[Path]:
    """The Parquet files of every cell, clips inside, in the order of the rows."""
    features = columns(found)
    (scratch / DATA).mkdir(parents=True, exist_ok=True)
    written = []
    for cell, rows in found.rows.items():
        shards = list(_shards(found, rows))
        for number, shard in enumerate(shards):
            path = scratch / DATA / f"{cell}-{number:05d}-of-{len(shards):05d}.parquet"
            _write_shard(found, shard, features, path)
            written.append(path)
    return written


def _shards(found: SafetySet, rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    shard: list[dict[str, Any]] = []
    room = SHARD
    for row in rows:
        size = found.clips[row["video"]].bytes if row.get("video") else 0
        if shard and size > room:
            yield shard
            shard, room = [], SHARD
        shard.append(row)
        room -= size
    yield shard


def _write_shard(found: SafetySet, rows: Sequence[dict[str, Any]], features: Features, path: Path) -> None:
    schema = features.arrow_schema
    # clips do not shrink; content-defined chunks let the Hub store a clip once, however many rows show it
    compression = {leaf: "none" if leaf.startswith("video.") else "zstd" for leaf in _leaves(schema)}
    options = {"compression": compression, "use_content_defined_chunking": True, "write_page_index": True}
    with pyarrow.parquet.ParquetWriter(path, schema, **options) as writer:
        for start in range(0, len(rows), ROW_GROUP):
            part = rows[start : start + ROW_GROUP]
            held: dict[str, Any] = {name: [row.get(name) for row in part] for name in schema.names if name != "video"}
            if "video" in schema.names:
                held["video"] = [_inside(found, row) for row in part]
            writer.write_table(pyarrow.table(held, schema=schema))


def _leaves(schema: pyarrow.Schema) -> list[str]:
    """Paths of a schema's columns as Parquet names them."""
    import io

    sink = io.BytesIO()
    pyarrow.parquet.write_table(schema.empty_table(), sink)
    columns = pyarrow.parquet.ParquetFile(sink).metadata.schema
    return [columns.column(i).path for i in range(len(columns))]


def _inside(found: SafetySet, row: dict[str, Any]) -> dict[str, Any] | None:
    if not row.get("video"):
        return None
    path = found.clips[row["video"]].path
    return {"bytes": path.read_bytes(), "path": path.name}


# --- card and side files --------------------------------------------------------------------------------------------------------------


def metadata(found: SafetySet, gate: str | None) -> dict[str, Any]:
    """What stands at the top of the README."""
    languages = sorted({str(row["language"]) for row in found.all_rows if row.get("language")})
    data: dict[str, Any] = {
        "pretty_name": f"{found.title} {found.version}" if found.version else found.title,
        "license": found.licence,
        "language": languages or [LANGUAGE_UNKNOWN],
        "task_categories": ["video-text-to-text"],
        "size_categories": [_size(len(found.all_rows))],
        "tags": [
            "videosafety",
            "safety",
            "lmms-eval",
            *(["video"] if found.clips else []),
            *(["not-for-all-audiences"] if found.harmful else []),
        ],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": cell, "path": f"{DATA}/{cell}-*.parquet"} for cell in found.rows],
            }
        ],
    }
    if found.harmful:
        data["viewer"] = False
    if gate:
        data |= {
            "extra_gated_heading": f"Ask for access to {found.title}",
            "extra_gated_prompt": GATE_PROMPT,
            "extra_gated_fields": GATE_FIELDS,
            "extra_gated_button_content": "Agree and ask for access",
        }
    return data


def _size(rows: int) -> str:
    return next((name for bound, name in SIZES if rows < bound), "10M<n<100M")


def card(found: SafetySet, repo: str, gate: str | None, croissant_check: str, benchmark: str | None) -> str:
    """The README: metadata, tables counted from what goes up, and how to load and run it."""
    return (
        environment()
        .get_template("dataset.md.jinja")
        .render(
            metadata=DatasetCardData(**metadata(found, gate)).to_yaml(),
            found=found,
            repo=repo,
            gate=gate,
            tables=tables(found),
            tasks=[f"vsb_{cell}" for cell in found.rows if cell in TASK_CELLS],
            croissant_check=croissant_check,
            benchmark=benchmark,
            facts=found.facts(),
            version=version("videosafety"),
        )
    )


def eval_yaml(found: SafetySet, framework: str) -> str:
    """eval.yaml as the Hub's docs give it (hub-docs, eval-results.md): name, description, framework, tasks with config and split."""
    rows = len(found.all_rows)
    body = {
        "name": found.title,
        "description": f"How safely video models answer: {rows:,} rows in {len(found.rows)} cells, each the split and task of its name.",
        "evaluation_framework": framework,
        "tasks": [{"id": f"vsb_{cell}", "config": "default", "split": cell} for cell in found.rows],
    }
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=120)


@cache
def environment() -> Environment:
    """The templates of all cards of this folder. Cells of tables are escaped by the filter `cell`."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=False,  # noqa: S701  (Markdown; what comes from outside goes through `cell` or `line`)
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {"cell": markdown_cell}
    return made


def markdown_cell(value: Any) -> str:
    """Text that stays inside one cell of a Markdown table, and no HTML."""
    text = " ".join(str(value).split())
    for raw, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(raw, safe)
    return text


def _json(facts: dict[str, Any]) -> bytes:
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()
