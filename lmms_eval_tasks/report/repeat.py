"""How to repeat a run: the command line and the facts that its results file holds, without anything that looks like a secret."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

from videosafety.lmms_eval_tasks.report.load import Run

NOT_RECORDED = "not recorded by this run"
VERSIONED = ("videosafety", "transformers", "torch")

# lmms-eval's own defaults: such arguments are left out of the command
DEFAULTS: dict[str, Any] = {
    "offset": 0,
    "limit": -1,
    "verbosity": "INFO",
    "timezone": "Asia/Singapore",
    "log_samples_suffix": "model_outputs",
    "reasoning_tags": '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]',
    "process_docs_parallel": 4,
    "agentic_trace_mode": "basic",
    "repeats": 1,
    "effect_size": 0.03,
    "alpha": 0.05,
    "power": 0.80,
    "correlation": 0.5,
}

_SECRET_NAME = re.compile(r"token|keys?$|secret|passw|credential|auth($|[_.-])|authori[sz]|cookie|bearer", re.IGNORECASE)
_COUNT_NAME = re.compile(r"tokens|tokenizer", re.IGNORECASE)
_SECRET_SHAPE = re.compile(
    r"\bhf_[A-Za-z0-9]{20,}|\bsk-[\w-]{16,}|\bgh[pousr]_\w{8,}|github_pat_\w+|\bAKIA[A-Z0-9]{12,}|\bAIza[\w-]{20,}|\bxox[abprs]-[\w-]+"
    r"|\beyJ[\w-]{8,}\.[\w-]+|bearer\s+\S+|://[^/\s@]+@|-----BEGIN|\[REDACTED\]",
    re.IGNORECASE,
)


def looks_secret(name: str, value: Any) -> bool:
    """Whether an argument has to be dropped, by its name or by the shape of its value. `max_new_tokens=512` and tokenizers stay."""
    if isinstance(value, str) and _SECRET_SHAPE.search(value):
        return True
    if value is None or isinstance(value, bool) or not _SECRET_NAME.search(name):
        return False
    count = _COUNT_NAME.search(name) and (re.fullmatch(r"[\d.]+", str(value)) or "tokenizer" in name.lower())
    return not count


def scrub(value: Any) -> Any:
    """The value without its secrets, at any depth; in "a=1,api_key=x" the part that names one is dropped."""
    if isinstance(value, dict):
        return {k: scrub(v) for k, v in value.items() if not looks_secret(str(k), v if not isinstance(v, dict | list) else None)}
    if isinstance(value, list):
        return [scrub(v) for v in value if not looks_secret("", v)]
    if not isinstance(value, str):
        return value
    kept, dropping = [], False
    for part in value.split(","):
        name, equals, text = part.partition("=")
        if equals:
            dropping = looks_secret(name, text)
        # what follows a dropped part without a name of its own may be the rest of the secret
        dropping = dropping or looks_secret("", part)
        if not dropping:
            kept.append(part)
    return ",".join(kept)


def command(run: Run) -> str:
    """The run's command line, one argument a line; arguments left at lmms-eval's defaults and secrets are not in it."""
    config = run.config
    arguments = config.get("resolved_cli_args")
    if not isinstance(arguments, dict):
        arguments = {k: config.get(k) for k in ("model", "model_args", "batch_size", "limit", "gen_kwargs")}
        arguments |= {"tasks": ",".join([*run.tasks, *run.other]), "log_samples": True}
    lines = ["lmms-eval"]
    for name, value in scrub(arguments).items():
        if value is None or value is False or value in ("", [], {}) or (name in DEFAULTS and DEFAULTS[name] == value):
            continue
        lines.append(f"--{name}" if value is True else f"--{name} {shlex.quote(_argument(value))}")
    spec = scrub((run.settings.get("judge") or {}).get("spec"))
    return (f"VIDEOSAFETY_JUDGE={shlex.quote(str(spec))} \\\n" if spec else "") + " \\\n  ".join(lines)


def _argument(value: Any) -> str:
    """A value as lmms-eval takes it on its command line: lists with commas, mappings as name=value."""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items())
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def facts(run: Run) -> list[tuple[str, str]]:
    """(name, value) of everything that tells this run from another: versions, seeds, data, policy, judge, model, date, hardware."""
    raw, config, settings = run.raw, run.config, scrub(run.settings)
    model = settings.get("model") or {}
    seconds = raw.get("total_evaluation_time_seconds")
    rows: list[tuple[str, Any]] = [("Model", scrub(run.model)), ("Model revision", model.get("revision"))]
    rows += [(f"Model: {k}", v) for k, v in _flat(model) if k not in ("pretrained", "revision", "hardware")]
    rows += [("Model arguments as given", scrub(config.get("model_args"))), ("Judge", judge_words(run))]
    rows += [(f"Judge: {k}", v) for k, v in _flat(settings.get("judge") or {}) if k != "id"]
    rows += [(f"Policy {k}", v) for k, v in _flat(settings.get("policy") or {"version and hash": None})]
    rows += [(f"Data: {k}", v) for k, v in _flat(settings.get("data") or {"version and hash": None})]
    rows += [(f"Rows of {task}", said) for task, said in (settings.get("rows") or {}).items()]
    rows += [("Rows of each task (--limit)", "all" if config.get("limit") in (None, -1) else config["limit"])]
    rows += [(f"Seed: {k.removesuffix('_seed')}", config[k]) for k in config if k.endswith("_seed")]
    noted = [settings.get("versions") or {}, model]
    rows += [("lmms-eval", raw.get("lmms_eval_version"))]
    rows += [(name, next((part[name] for part in noted if part.get(name)), None)) for name in VERSIONED]
    rows += [("Git commit of the folder it ran in", raw.get("git_hash")), ("Date", date_words(run))]
    rows += [("Hardware", model.get("hardware") or config.get("device"))]
    rows += [("Evaluation time", f"{float(seconds):,.0f} s" if seconds else None)]
    rows += [(f"Throughput: {k}", v) for k, v in _flat(raw.get("throughput") or {})]
    rows += [("Results file", run.path.name)]
    return [(name, NOT_RECORDED if value in (None, "") else str(value)) for name, value in rows]


def date_words(run: Run) -> str:
    """The run's date as "2026-01-31 09:30 (Asia/Singapore)": lmms-eval writes local time of the zone it was told."""
    found = re.match(r"(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)", run.date)
    if not found:
        return run.date
    zone = (run.config.get("resolved_cli_args") or {}).get("timezone") or DEFAULTS["timezone"]
    return "{}-{}-{} {}:{} ({})".format(*found.groups(), zone)


def data_words(run: Run) -> str:
    """Name and version of every data set that the run noted."""
    sets = run.settings.get("data") or {}
    named = [f"{name} {body.get('version', '')}".strip() if isinstance(body, dict) else f"{name} {body}" for name, body in sets.items()]
    return ", ".join(named) or NOT_RECORDED


def judge_words(run: Run) -> str:
    """Ids of the judges, without passwords that a server's address may hold."""
    return ", ".join(scrub(run.judges)) or "unknown"


def policy_words(run: Run) -> str:
    """Version and hash of the policy that the judge went by."""
    noted = run.settings.get("policy") or {}
    return f"v{noted['version']} · {noted.get('hash', 'no hash')}" if "version" in noted else NOT_RECORDED


def _flat(facts: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", ", ".join(map(str, value)) if isinstance(value, list) else value
