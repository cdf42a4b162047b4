"""Part of a test server, never the real Hub: what it says of a card's metadata, eval.yaml and .eval_results, as the Hub's docs tell it.

Stricter than nothing, looser than the Hub: it knows the rules that its documentation states.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

_LICENCES = """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl
apple-amlr mpl-2.0 odc-by odbl open-mdw openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 gemma unknown other"""
LICENCES = frozenset(_LICENCES.split())
FIELD_TYPES = ("text", "checkbox", "country", "ip_location", "date_picker", "select")
SPACE_SDKS = ("gradio", "docker", "static", "streamlit")
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
TEXTS = ("extra_gated_prompt", "extra_gated_heading", "extra_gated_button_content", "library_name", "pipeline_tag", "pretty_name")


def front_matter(text: str) -> dict[str, Any]:
    """Raises yaml.YAMLError."""
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---(\r?\n|$)", text, re.DOTALL)
    data = yaml.safe_load(found[1]) if found else {}
    return data if isinstance(data, dict) else {}


def problems(text: str, kind: str) -> list[str]:
    """What is wrong with the front matter of a card. kind: model, dataset or space."""
    try:
        data = front_matter(text)
    except yaml.YAMLError as error:
        return [f"the front matter is no YAML: {str(error).splitlines()[0]}"]
    found = [f'"{key}" must be a string' for key in TEXTS if key in data and not isinstance(data[key], str)]
    for licence in _list(data.get("license")):
        if licence not in LICENCES:
            found.append(f'"license" must be one of the Hub\'s, not {licence!r}')
        if licence == "other" and not data.get("license_name"):
            found.append('"license_name" is required where "license" is other')
    for key in ("base_model", "datasets"):
        found += [f'"{key}" names no repository: {name!r}' for name in _list(data.get(key)) if not _is_id(name)]
    for key in ("tags", "language", "task_categories"):
        found += [f'"{key}" must be a list of strings' for value in _list(data.get(key)) if not isinstance(value, str)]
    if kind == "space" and data and data.get("sdk") not in SPACE_SDKS:
        found.append(f'"sdk" must be one of {", ".join(SPACE_SDKS)}')
    if kind == "dataset":
        found += _of_dataset(data)
    if "model-index" in data:
        found += _of_index(data["model-index"])
    return found


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_id(name: Any) -> bool:
    return isinstance(name, str) and bool(REPO_ID.fullmatch(name))


def _of_dataset(data: dict[str, Any]) -> list[str]:
    found = [] if isinstance(data.get("viewer", True), bool) else ['"viewer" must be true or false']
    fields = data.get("extra_gated_fields") or {}
    if not isinstance(fields, dict):
        return [*found, '"extra_gated_fields" must map labels to kinds']
    for label, kind in fields.items():
        name = kind.get("type") if isinstance(kind, dict) else kind
        if name not in FIELD_TYPES:
            found.append(f'"extra_gated_fields": {label!r} must be one of {", ".join(FIELD_TYPES)}')
        if name == "select" and not (isinstance(kind, dict) and kind.get("options")):
            found.append(f'"extra_gated_fields": {label!r} needs options')
    for config in _list(data.get("configs")):
        if not isinstance(config, dict) or "config_name" not in config:
            found.append('"configs" must be a list with config_name each')
    return found


def _of_index(index: Any) -> list[str]:
    """The legacy model-index."""
    found = []
    for model in _list(index):
        if not isinstance(model, dict) or not model.get("name"):
            return ['"model-index" needs a name for each model']
        for result in _list(model.get("results")):
            if not (result.get("task") or {}).get("type"):
                found.append('"model-index": a result needs task.type')
            dataset = result.get("dataset") or {}
            if not dataset.get("type") or not dataset.get("name"):
                found.append('"model-index": a result needs dataset.type and dataset.name')
            for metric in _list(result.get("metrics")):
                if not metric.get("type") or metric.get("value") is None:
                    found.append('"model-index": a metric needs type and value')
    return found


def results_problem(path: str, data: bytes) -> str | None:
    """What is wrong with `.eval_results/*.yaml` of a model, or with `eval.yaml` of a dataset."""
    try:
        found = yaml.safe_load(data)
    except yaml.YAMLError as error:
        return f"{path} is no YAML: {str(error).splitlines()[0]}"
    if path == "eval.yaml":
        if not isinstance(found, dict) or {"name", "evaluation_framework", "tasks"} - set(found):
            return "eval.yaml needs name, evaluation_framework and tasks"
        return None if all(isinstance(task, dict) and task.get("id") for task in found["tasks"]) else "eval.yaml: each task needs an id"
    if not isinstance(found, list):
        return f"{path} must be a list"
    for entry in found:
        dataset = entry.get("dataset") if isinstance(entry, dict) else None
        if not isinstance(dataset, dict) or not dataset.get("id") or not dataset.get("task_id"):
            return f"{path}: each entry needs dataset.id and dataset.task_id"
        if isinstance(entry.get("value"), bool) or not isinstance(entry.get("value"), int | float):
            return f"{path}: each entry needs a number as its value"
        source = entry.get("source")
        if source is not None and not (isinstance(source, dict) and source.get("url")):
            return f"{path}: a source needs a url"
    return None
