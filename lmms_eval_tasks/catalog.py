"""What is known of every data set: the facts of each dataset.yml, checked and typed, and the sets that have no faithful task here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
KINDS = ("hub", "github", "own", "none")  # a Hugging Face dataset, a GitHub repository, ships with us, cannot be fetched
STATUSES = ("ready", "unavailable")
COMMIT = re.compile(r"[0-9a-f]{7,40}")


@dataclass(frozen=True)
class Source:
    """Where a set comes from."""

    kind: str
    id: str | None  # owner/name
    revision: str | None  # a commit, full or short; None: none is known to be pinned by anybody, so the head is taken once and kept
    files: tuple[str, ...]  # globs of the repository's files that are fetched; * matches / too
    folder: str  # the repository's folder that becomes the data folder; "" for all of it

    @property
    def page(self) -> str | None:
        """The address to open in a browser."""
        return {"hub": f"https://huggingface.co/datasets/{self.id}", "github": f"https://github.com/{self.id}"}.get(self.kind)


@dataclass(frozen=True)
class Task:
    """One task of a set, a row of the comparison table."""

    name: str
    rows: int | None  # None: not known
    metric: str  # the one to read first
    modality: str
    cell: str  # what is harmful: picture or video, words, both, nothing
    judge: str
    status: str
    reason: str | None  # why it is unavailable


@dataclass(frozen=True)
class Reference:
    """A figure that others published, in their metric; never ours."""

    task: str
    metric: str
    model: str
    value: float
    source: str
    note: str


@dataclass(frozen=True)
class DataSet:
    """One dataset.yml."""

    name: str
    title: str
    paper: str
    arxiv: str | None
    about: str
    source: Source
    unpack: Mapping[str, str]  # archive -> folder inside the data folder that it is unpacked in
    licence: str
    gate: str | None  # how to pass it; None: open
    size_mb: float | None
    layout: tuple[str, ...]  # globs that must each match something in the data folder
    sha256: Mapping[str, str]  # file of the data folder -> hash
    note: str
    tasks: tuple[Task, ...]
    reference: tuple[Reference, ...]

    @property
    def status(self) -> str:
        """`ready` where a task of it is."""
        return "ready" if any(task.status == "ready" for task in self.tasks) else "unavailable"

    @property
    def way_in(self) -> str:
        """What to do before it can be fetched, as a clause that the command goes on from; empty where it is open."""
        if self.gate is None:
            return ""
        page = "" if str(self.source.page) in self.gate else f" on {self.source.page}"
        login = "run `hf auth login`, then " if self.source.kind == "hub" and "hf auth login" not in self.gate else ""
        return f"pass its gate{page} ({self.gate}), then {login}"


@dataclass(frozen=True)
class Missing:
    """A set that has no faithful task here, and why."""

    name: str
    title: str
    reason: str
    instead: str | None  # a task or group of ours that comes nearest


@cache
def catalog() -> dict[str, DataSet]:
    """Every set by its name, in the order of the names.

    Raises:
        ValueError: a dataset.yml is not as it must be; the message names file and key.
    """
    sets = {file.parent.name: read(file) for file in sorted(FOLDER.glob("*/dataset.yml"))}
    owners: dict[str, str] = {}
    for found in sets.values():
        for task in found.tasks:
            if owners.setdefault(task.name, found.name) != found.name:
                raise ValueError(f"{found.name}/dataset.yml: tasks: {task.name} is listed by {owners[task.name]} too")
    return sets


@cache
def missing() -> tuple[Missing, ...]:
    """The sets of not_implemented.yml. Raises ValueError as `catalog` does."""
    file = FOLDER / "not_implemented.yml"
    entries = _load(file)
    if not isinstance(entries, list):
        raise ValueError(f"{file}: must be a list")
    keys: dict[str, Kind] = {"name": str, "title": str, "reason": str, "instead": (str, NULL)}
    return tuple(Missing(**_checked(entry, keys, f"{file}: entry {number}")) for number, entry in enumerate(entries, 1))


def read(file: Path) -> DataSet:
    """One dataset.yml, every key checked. Raises ValueError naming file and key."""
    where = str(file)
    facts = _checked(_load(file), DATASET_KEYS, where)
    if facts["name"] != file.parent.name:
        raise ValueError(f"{where}: name: {facts['name']!r} is not the folder's name, {file.parent.name}")
    source = _source(facts["source"], f"{where}: source")
    for path in (*_texts(facts["layout"], f"{where}: layout"), *_pairs(facts["unpack"], f"{where}: unpack"), *facts["unpack"].values()):
        _relative(path, f"{where}: layout or unpack")
    if source.kind in ("hub", "github") and not facts["layout"]:
        raise ValueError(f"{where}: layout: is empty, so that nothing fetched could be checked")
    for name, digest in _pairs(facts["sha256"], f"{where}: sha256").items():
        _relative(name, f"{where}: sha256")
        if not re.fullmatch(r"[0-9a-f]{64}", digest):
            raise ValueError(f"{where}: sha256: {name}: {digest!r} is not 64 hexadecimal digits")
    tasks = tuple(_task(name, entry, f"{where}: tasks: {name}") for name, entry in facts["tasks"].items())
    if not tasks:
        raise ValueError(f"{where}: tasks: is empty")
    names = {task.name for task in tasks}
    reference = tuple(_reference(entry, names, f"{where}: reference: entry {number}") for number, entry in enumerate(facts["reference"], 1))
    return DataSet(**facts | {"source": source, "layout": tuple(facts["layout"]), "tasks": tasks, "reference": reference})


def row(found: DataSet, task: Task) -> dict[str, Any]:
    """A task as `videosafety data list --json` prints it."""
    set_facts = {"set": found.name, "source": found.source.page or found.source.kind, "revision": found.source.revision}
    return asdict(task) | set_facts | {"licence": found.licence, "gate": found.gate}


# --- checks -----------------------------------------------------------------------------------------------------------------------

Kind = type | tuple[type, ...]
NULL = type(None)
DATASET_KEYS: dict[str, Kind] = {
    "name": str, "title": str, "paper": str, "arxiv": (str, NULL), "about": str, "source": dict, "unpack": dict, "licence": str,
    "gate": (str, NULL), "size_mb": (int, float, NULL), "layout": list, "sha256": dict, "note": str, "tasks": dict, "reference": list,
}  # fmt: skip
SOURCE_KEYS: dict[str, Kind] = {"kind": str, "id": (str, NULL), "revision": (str, NULL), "files": list, "folder": str}
TASK_KEYS: dict[str, Kind] = {"rows": (int, NULL), "metric": str, "modality": str, "cell": str, "judge": str, "status": str}
REFERENCE_KEYS: dict[str, Kind] = {"task": str, "metric": str, "model": str, "value": (int, float), "source": str}


def _load(file: Path) -> Any:
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: not YAML: {' '.join(str(error).split())}") from error


def _checked(entry: Any, keys: Mapping[str, Kind], where: str, optional: Mapping[str, Kind] | None = None) -> dict[str, Any]:
    """The mapping `entry`, which must have all of `keys`, may have the `optional` ones, and no other, each of its kind."""
    if not isinstance(entry, dict):
        raise ValueError(f"{where}: must be a mapping, got {entry!r:.60}")
    known = {**keys, **(optional or {})}
    for key in entry:
        if key not in known:
            raise ValueError(f"{where}: {key}: unknown key; known are {', '.join(known)}")
    for key, kind in known.items():
        if key not in entry:
            if key in keys:
                raise ValueError(f"{where}: {key}: is missing")
        elif not isinstance(entry[key], kind) or isinstance(entry[key], bool):
            raise ValueError(f"{where}: {key}: has the wrong kind: {entry[key]!r:.60}")
    return entry


def _texts(values: list[Any], where: str) -> list[str]:
    if not all(isinstance(value, str) and value for value in values):
        raise ValueError(f"{where}: must be a list of texts")
    return values


def _pairs(values: dict[Any, Any], where: str) -> dict[str, str]:
    if not all(isinstance(part, str) and part for pair in values.items() for part in pair):
        raise ValueError(f"{where}: must map texts to texts")
    return values


def _relative(path: str, where: str) -> None:
    if path.startswith("/") or ".." in path.split("/"):
        raise ValueError(f"{where}: {path!r} must be a path inside the data folder")


def _source(entry: Any, where: str) -> Source:
    facts = _checked(entry, SOURCE_KEYS, where)
    kind, files = facts["kind"], _texts(facts["files"], f"{where}: files")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind: {kind!r} must be one of {', '.join(KINDS)}")
    _relative(facts["folder"], f"{where}: folder")
    if kind in ("hub", "github"):
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", facts["id"] or ""):
            raise ValueError(f"{where}: id: {facts['id']!r} must be owner/name")
        if not files:
            raise ValueError(f"{where}: files: is empty, so that nothing would be fetched")
        if facts["revision"] is not None and not COMMIT.fullmatch(facts["revision"]):
            raise ValueError(f"{where}: revision: {facts['revision']!r} must be a commit (7 to 40 hexadecimal digits) or null")
    return Source(**facts | {"files": tuple(files)})


def _task(name: Any, entry: Any, where: str) -> Task:
    facts = _checked(entry, TASK_KEYS, where, {"reason": (str, NULL)})
    if not isinstance(name, str):
        raise ValueError(f"{where}: a task's name must be a text")
    if facts["status"] not in STATUSES:
        raise ValueError(f"{where}: status: {facts['status']!r} must be one of {', '.join(STATUSES)}")
    if (facts["status"] == "unavailable") != bool(facts.get("reason")):
        raise ValueError(f"{where}: reason: belongs to a task that is unavailable, and to no other")
    if facts["rows"] is not None and facts["rows"] < 1:
        raise ValueError(f"{where}: rows: must be 1 or more, or null")
    return Task(name=name, **{"reason": None} | facts)


def _reference(entry: Any, tasks: set[str], where: str) -> Reference:
    facts = _checked(entry, REFERENCE_KEYS, where, {"note": str})
    if facts["task"] not in tasks:
        raise ValueError(f"{where}: task: {facts['task']!r} is not listed under tasks")
    return Reference(**{"note": ""} | facts)
