"""The file that a build is made from: read strictly, so that a misspelt option is an error and never a default."""

from __future__ import annotations

import dataclasses
import os
import re
import sys
import types
import typing
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from videosafety.dataset_builder.rows import digest, half_pair
from videosafety.lmms_eval_tasks.judge.policy import category_groups
from videosafety.lmms_eval_tasks.judge.redact import one_line

LANGUAGES = ("en", "zh", "es", "ar", "hi", "fr", "pt", "ru", "ja", "de")  # those of VSB-Open; queries are written in the first
LEAST_PIXELS = 28 * 28  # of a frame: the least that a model is shown
SPLITS = ("train", "validation", "test")


class ConfigError(ValueError):
    """The file cannot be used; one line names the file, the option and the mend."""


@dataclass(frozen=True)
class Source:
    """Where videos come from: exactly one of `folder`, `manifest` and `shards`. Relative paths start at the config file.

    manifest: JSON Lines or CSV beside the videos. shards: a pattern of WebDataset tars. origin: whose videos they are; splits keep an
    origin together. A manifest's `origin` column says it row by row.
    """

    name: str
    folder: str | None = None
    manifest: str | None = None
    shards: str | None = None
    origin: str | None = None
    licence: str | None = None


@dataclass(frozen=True)
class Limits:
    """Of one video: bytes and seconds above which it is turned away."""

    max_bytes: int = 2 << 30
    max_seconds: float = 600.0


@dataclass(frozen=True)
class Shots:
    """fps: frames a second looked at, > 0. threshold: share of colour in [0, 1] that must change at a cut. Seconds: length of a shot."""

    fps: float = 8.0
    threshold: float = 0.3
    min_seconds: float = 1.0
    max_seconds: float = 60.0
    max_pixels: int = 640 * 360


@dataclass(frozen=True)
class Filter:
    """min_motion: mean change from frame to frame, as a share of the full range, below which a shot is a still picture.
    duplicate_bits: fingerprints (256 bits) that differ in at most so many are one clip. features: folder of DINOv2 weights, or none."""

    min_motion: float = 0.002
    duplicate_bits: int = 24
    features: str | None = None


@dataclass(frozen=True)
class Server:
    """A model behind an OpenAI-compatible server. url: base URL, ends in /v1. family: who trained it (qwen, llama, gemma …).
    key: the name of the environment variable with the key. options: more fields of every request's body."""

    url: str
    model: str
    family: str
    revision: str | None = None
    key: str | None = None
    timeout: float = 120.0
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """Who says whether a clip shows harm. frames: how many it sees; 0: it reads the manifest's description and sees nothing."""

    server: str
    frames: int = 8


@dataclass(frozen=True)
class Labels:
    """manifest: the label that the manifest gives is the first vote. on_disagreement: `hold` the clip back for a reviewer, or let the
    `majority` or the `first` vote stand until a reviewer says otherwise."""

    judges: list[Judge] = field(default_factory=list)
    manifest: bool = False
    on_disagreement: str = "hold"
    category: str | None = None  # of clips for which nobody names one


@dataclass(frozen=True)
class Queries:
    """server writes; check: another that says whether a query asks, or teaches. per_cell: queries of each cell and clip. attempts: with
    other seeds, until one is good. templates: where none is, a sentence of ours."""

    server: str | None = None
    check: str | None = None
    per_cell: int = 1
    attempts: int = 3
    templates: bool = False


@dataclass(frozen=True)
class Translate:
    """targets: languages beside English. back: the server that translates back. min_chrf: how much must come back, in [0, 1]."""

    server: str
    back: str
    targets: list[str] = field(default_factory=lambda: list(LANGUAGES[1:]))
    min_chrf: float = 0.4


@dataclass(frozen=True)
class Spans:
    """window: seconds that one label covers. model: folder of an alarm model that gives them in the judges' place, with its threshold."""

    window: float = 4.0
    model: str | None = None
    threshold: float = 0.5


@dataclass(frozen=True)
class Describe:
    """server: writes what a clip shows, from `frames` frames; 0: from the manifest's description."""

    server: str
    frames: int = 8


@dataclass(frozen=True)
class Training:
    """reason: writes the thinking and the chosen answer. reject: answers without the policy. judge: of its answers, a judge spec."""

    reason: str
    reject: str | None = None
    judge: str = "offline"


@dataclass(frozen=True)
class Review:
    """sample: how many rows are drawn for the error rate."""

    sample: int = 100


@dataclass(frozen=True)
class Config:
    """A whole build. `root`: the folder of the config file; `out`: where the set is written."""

    name: str
    sources: list[Source]
    licence: str
    out: str = "out"
    version: str = "1.0"
    seed: int = 0
    allow_one_family: bool = False
    limits: Limits = field(default_factory=Limits)
    shots: Shots = field(default_factory=Shots)
    filter: Filter = field(default_factory=Filter)
    servers: dict[str, Server] = field(default_factory=dict)
    labels: Labels = field(default_factory=Labels)
    describe: Describe | None = None
    queries: Queries = field(default_factory=Queries)
    translate: Translate | None = None
    spans: Spans = field(default_factory=Spans)
    splits: dict[str, float] = field(default_factory=lambda: {"test": 1.0})
    training: Training | None = None
    review: Review = field(default_factory=Review)
    root: Path = field(default=Path(), compare=False)

    @property
    def folder(self) -> Path:
        return (self.root / self.out).resolve()

    @property
    def work(self) -> Path:
        """Journal, answers of servers and cut clips: what a later run goes on from."""
        return self.folder / ".build"

    def of(self, *parts: str) -> str:
        """Identity of some sections: what was done with other settings is done again."""
        return digest({part: dataclasses.asdict(self)[part] for part in parts})

    def families(self) -> dict[str, set[str]]:
        """Role -> the families of the models that fill it."""
        roles: dict[str, list[str | None]] = {
            "labels": [judge.server for judge in self.labels.judges],
            "queries": [self.queries.server],
            "query check": [self.queries.check],
            "translation": [self.translate.server, self.translate.back] if self.translate else [],
            "description": [self.describe.server] if self.describe else [],
            "training": [self.training.reason, self.training.reject] if self.training else [],
        }
        return {role: found for role, names in roles.items() if (found := {self.servers[name].family for name in names if name})}


def load(path: Path) -> Config:
    """Read and check a config.

    Raises:
        ConfigError: not there, not YAML, an option that does not exist or has the wrong kind, or parts that do not fit together.
    """
    try:
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: no UTF-8, a number of thousands of digits
        raise ConfigError(f"{path}: cannot be read ({one_line(str(error))})") from error
    if not isinstance(body, dict):
        raise ConfigError(f"{path}: must be a mapping of options")
    if "root" in body:
        raise ConfigError(f"{path}: 'root' is no option")
    config = dataclasses.replace(_made(Config, body, str(path), ""), root=path.resolve().parent)
    for problem in _problems(config):
        raise ConfigError(f"{path}: {problem}")
    return config


def _made(kind: Any, value: Any, file: str, place: str) -> Any:
    """`value` as the dataclass or type `kind`."""
    where = f"{file}: {place or 'the file'}"
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in inner:
            return None
        return _made(next(part for part in inner if part is not type(None)), value, file, place)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ConfigError(f"{where} must be a mapping{_got(value, place)}")
        fields = {f.name: f for f in dataclasses.fields(kind)}
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in fields:
                raise ConfigError(f"{where} has no option {key!r}; options are {', '.join(name for name in fields if name != 'root')}")
        needed = [n for n, f in fields.items() if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
        if lost := [name for name in needed if name not in value]:
            raise ConfigError(f"{where} needs {', '.join(lost)}")
        prefix = f"{place}." if place else ""
        return kind(**{key: _made(hints[key], entry, file, prefix + key) for key, entry in value.items()})
    if origin is list and isinstance(value, list):
        return [_made(inner[0], entry, file, f"{place}[{n}]") for n, entry in enumerate(value)]
    if origin is dict and isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _made(inner[1], entry, file, f"{place}.{key}") for key, entry in value.items()}
    if kind is Any:
        return value
    if isinstance(value, str) and half_pair(value):
        raise ConfigError(f"{where} holds half a surrogate pair")
    if kind is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{where} must be a finite number{_got(value, place)}")
        return float(value)
    if origin is None and isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} must be {getattr(origin or kind, '__name__', kind)}{_got(value, place)}")


def _got(value: Any, place: str) -> str:
    """What stands there instead, without anything that could be a key."""
    return "" if place.endswith(".key") else f", got {one_line(repr(value), 60)}"


def _problems(config: Config) -> list[str]:
    """What does not fit together, a sentence each with the mend."""
    found = []
    if not config.name.isascii() or not config.name.replace("-", "").replace("_", "").isalnum():
        found.append(f"name {config.name!r} must be ASCII letters, digits, - and _: ids of rows begin with it")
    if not config.sources:
        found.append("sources is empty; name at least one folder, manifest or pattern of shards")
    for source in config.sources:
        if sum(value is not None for value in (source.folder, source.manifest, source.shards)) != 1:
            found.append(f"source {source.name!r} must have exactly one of folder, manifest and shards")
    if len({source.name for source in config.sources}) < len(config.sources):
        found.append("two sources have one name")
    found += [f"splits.{name} is no split; splits are {', '.join(SPLITS)}" for name in config.splits if name not in SPLITS]
    if "test" not in config.splits or any(share <= 0 for share in config.splits.values()):
        found.append("splits must give test, and every split a share above 0")
    if config.labels.on_disagreement not in ("hold", "majority", "first"):
        found.append(f"labels.on_disagreement must be hold, majority or first, got {config.labels.on_disagreement!r}")
    if not config.labels.judges and not config.labels.manifest:
        found.append("labels names nobody: give judges, or manifest: true")
    if config.labels.category is not None and config.labels.category not in category_groups():
        found.append(f"labels.category {config.labels.category!r} is not in the policy")
    if config.queries.server is None and not config.queries.templates:
        found.append("queries needs a server, or templates: true")
    if config.training and "train" not in config.splits:
        found.append("training needs a split named train")
    found += _number_problems(config)
    if config.shots.max_seconds < 2 * config.shots.min_seconds:
        found.append("shots.max_seconds must be at least twice shots.min_seconds: longer shots are cut into equal parts")
    if config.translate:
        found += [
            f"translate.targets: {t!r} is not one of {', '.join(LANGUAGES[1:])}" for t in config.translate.targets if t not in LANGUAGES[1:]
        ]
    return found + _server_problems(config)


def _number_problems(config: Config) -> list[str]:
    """Numbers below the least or above the most that means something. Text that is no number never gets here."""
    above = {
        "shots.fps": config.shots.fps, "shots.min_seconds": config.shots.min_seconds, "limits.max_seconds": config.limits.max_seconds,
        "limits.max_bytes": config.limits.max_bytes, "spans.window": config.spans.window, "queries.per_cell": config.queries.per_cell,
        "queries.attempts": config.queries.attempts,
    }  # fmt: skip
    above |= {f"servers.{name}.timeout": server.timeout for name, server in config.servers.items()}
    least = {f"labels.judges[{n}].frames": judge.frames for n, judge in enumerate(config.labels.judges)}
    least |= {"describe.frames": config.describe.frames} if config.describe else {}
    least |= {"review.sample": config.review.sample, "filter.duplicate_bits": config.filter.duplicate_bits}
    shares = {
        "shots.threshold": config.shots.threshold, "filter.min_motion": config.filter.min_motion, "spans.threshold": config.spans.threshold
    }  # fmt: skip
    shares |= {"translate.min_chrf": config.translate.min_chrf} if config.translate else {}
    found = [f"{name} must be above 0, got {value}" for name, value in above.items() if not value > 0]
    found += [f"{name} must be 0 or more, got {value}" for name, value in least.items() if value < 0]
    found += [f"{name} must be in [0, 1], got {value}" for name, value in shares.items() if not 0 <= value <= 1]
    if config.shots.max_pixels < LEAST_PIXELS:
        found.append(f"shots.max_pixels must be at least {LEAST_PIXELS}, got {config.shots.max_pixels}")
    return found


def _server_problems(config: Config) -> list[str]:
    named = [judge.server for judge in config.labels.judges] + [config.queries.server, config.queries.check]
    named += [config.translate.server, config.translate.back] if config.translate else []
    named += [config.describe.server] if config.describe else []
    named += [config.training.reason, config.training.reject] if config.training else []
    known = ", ".join(config.servers) or "none"
    if lost := [name for name in named if name is not None and name not in config.servers]:
        return [f"{lost[0]!r} is not among servers ({known})"]
    found = [
        f"servers.{name}.url must start with http:// or https://" for name, s in config.servers.items() if not s.url.startswith("http")
    ]
    found += [problem for name, server in config.servers.items() if (problem := _key_problem(name, server.key))]
    for (one, a), (other, b) in combinations(config.servers.items(), 2):
        if (a.model, a.revision) == (b.model, b.revision) and (a.url, a.family) != (b.url, b.family):
            found.append(
                f"servers {one} and {other} have one model and revision, so each would get the other's answers; "
                f"give each a revision, or the model's full name in model"
            )
    if config.allow_one_family:
        return found
    families = config.families()
    judging = families.get("labels", set())
    if len(config.labels.judges) > 1 and len(judging) == 1:
        found.append("labels.judges are all of one family and share its errors; add another, or set allow_one_family: true")
    for role in ("labels", "query check"):
        if (both := families.get(role, set()) & families.get("queries", set())) and families.get(role, set()) <= families["queries"]:
            found.append(f"{role} and queries are both by {', '.join(both)}; add another family to {role}, or set allow_one_family: true")
    return found


def _key_problem(name: str, key: str | None) -> str | None:
    """What is wrong with the variable that a server's key is in. Never repeats it: it may be the key itself, and votes name what fails."""
    if key is None:
        return None
    if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", key):
        return f"servers.{name}.key must be the name of an environment variable (A-Z, 0-9 and _), not the key itself"
    return None if os.environ.get(key) else f"servers.{name}.key names an environment variable that is not set; export it"
