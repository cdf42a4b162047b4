"""The card of a checkpoint, filled from the files of its folder: config, weights, record of the run, and the folder's own README."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from yaml import YAMLError

from videosafety.hf_models import build
from videosafety.hf_models.alarm_core import token_ids
from videosafety.hf_models.checkpoint import first_line
from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.fold import HEADS_FILE
from videosafety.hub_cards.dataset import environment
from videosafety.hub_cards.lines import from_rows, public
from videosafety.hub_cards.results import END, KEPT, START, merge_card
from videosafety.hub_cards.safety_set import own_words
from videosafety.hub_cards.upload import PublishError

RECORD, STATE = "training_recipe.json", "trainer_state.json"  # what a run of training_recipes leaves beside its weights
OWN_START, OWN_END = "<!-- the folder's own README -->", "<!-- end of the folder's own README -->"
EVERY_CARD = ("Alarm tokens: visual ", "Licence of the weights: ")  # how paragraphs of build-alarm's cards start that ours has too
KEPT_FIELDS = ("base_model", "base_model_relation", "datasets", "language", "license_link", "license_name", "pipeline_tag")
REPO_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
LICENCE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")  # as the Hub writes them; which there are, the Hub itself says when it validates the card
# What of a run's settings its card tells, in this order, where the run recorded them.
SETTINGS = {
    "learning_rate": "learning rate", "lr_scheduler_type": "schedule", "warmup_ratio": "warm-up", "weight_decay": "weight decay",
    "num_train_epochs": "epochs", "per_device_train_batch_size": "rows a device", "gradient_accumulation_steps": "accumulation",
    "num_generations": "generations a prompt", "beta": "beta", "bf16": "bf16 (autocast)", "seed": "seed",
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """What a card is made of. files: path in the repository -> file. tensors: see check.tensors.

    code: whether loading runs code beside the weights. foreign: files of that which are not this package's own.
    """

    folder: Path
    repo: str
    files: Mapping[str, Path]
    tensors: Mapping[str, Mapping[str, tuple[str, list[int]]]]
    code: bool
    licence: str | None
    foreign: tuple[str, ...] = ()


def model_card(about: Card, kept: str | None = None) -> str:
    """README.md of a checkpoint.

    Args:
        kept: the safety_results.json of its repository, whose figures the card then shows.

    Raises:
        PublishError: no licence, or a file that cannot be read.
    """
    config, own = _json(about, "config.json") or {}, _own_card(about)
    record, kind = _json(about, RECORD), _kind(about, config)
    facts = _licence(about, own)
    start = ((record or {}).get("recipe") or {}).get("model")
    meta: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "image-text-to-text"}
    meta |= {"base_model": start} if start and REPO_ID.fullmatch(start) and not Path(start).exists() else {}
    meta |= {key: own[key] for key in KEPT_FIELDS if own.get(key)} | facts
    if record and meta.get("base_model"):
        meta.setdefault("base_model_relation", "finetune")
    tags = ["video", "safety", "videosafety", *(["alarm-tokens"] if kind != "plain" else [])]
    meta["tags"] = list(dict.fromkeys([*(own.get("tags") or []), *tags]))
    alarm = _alarm(config, record) if kind == "alarm" else None
    text = environment().get_template("model.md.jinja").render(
        metadata=ModelCardData(**dict(sorted(meta.items()))).to_yaml(),
        repo=about.repo,
        name=about.repo.partition("/")[2],
        kind=kind,
        code=about.code,
        foreign=about.foreign,
        config=config,
        size=_size(about),
        alarm=alarm,
        base=meta.get("base_model"),
        datasets=meta.get("datasets"),
        training=_training(record, _json(about, STATE)) if record else None,
        data=_data(record) if record else [],
        licence={"license_name": None, "license_link": None} | facts,
        has_licence_file="LICENSE" in about.files,
        own=_own_text(about, bool(alarm and alarm["trained"])),
        own_start=OWN_START,
        own_end=OWN_END,
        heads_file=HEADS_FILE,
        version=version("videosafety"),
    )  # fmt: skip
    kept = kept or (about.files[KEPT].read_text(encoding="utf-8") if KEPT in about.files else None)
    if kept is None:
        return text
    try:
        rows = json.loads(kept)
    except ValueError as error:
        raise PublishError(f"{about.repo}: its {KEPT} is no JSON: remove it, and publish all results again") from error
    return merge_card(text, about.repo, from_rows(rows, f"{about.repo}: {KEPT}"))


# --- what the folder says ---------------------------------------------------------------------------------------------------------------


def _kind(about: Card, config: Mapping[str, Any]) -> str:
    """alarm, folded or plain."""
    if str(config.get("model_type", "")).startswith("alarm_"):
        return "alarm"
    return "folded" if HEADS_FILE in about.files else "plain"


def _json(about: Card, name: str) -> dict[str, Any] | None:
    if name not in about.files:
        return None
    try:
        value = json.loads(about.files[name].read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{about.folder / name} is no JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise PublishError(f"{about.folder / name} holds no JSON object")
    return value


def _own_card(about: Card) -> dict[str, Any]:
    """The metadata of the folder's README.md."""
    if "README.md" not in about.files:
        return {}
    try:
        card = ModelCard(about.files["README.md"].read_text(encoding="utf-8"), ignore_metadata_errors=True)
    except (ValueError, YAMLError) as error:
        raise PublishError(f"{about.folder / 'README.md'} has metadata that is no YAML: {first_line(error)}") from error
    return dict(card.data.to_dict())


def _licence(about: Card, own: Mapping[str, Any]) -> dict[str, str]:
    """license, and where that is `other` its name and link."""
    licence = about.licence or own.get("license")
    if isinstance(licence, list):
        licence = licence[0]
    if not licence or licence in ("unknown", "license"):
        raise PublishError(
            f"{about.folder} does not say under which licence it may be used: --license apache-2.0, for example. It cannot allow more than "
            "that of the model it was made from"
        )
    if not LICENCE_ID.fullmatch(str(licence)):
        raise PublishError(f"--license {licence}: give it as the Hub writes it, such as apache-2.0, cc-by-nc-4.0, or other")
    found = {"license": str(licence)}
    if licence == "other":
        found |= {key: str(own[key]) for key in ("license_name", "license_link") if own.get(key)}
        if "license_name" not in found or ("license_link" not in found and "LICENSE" not in about.files):
            raise PublishError(
                f"{about.folder}: for licence `other` write license_name and license_link into the front matter of its README.md, "
                "or license_name and a file LICENSE"
            )
    return found


def _size(about: Card) -> str:
    """Parameters and dtypes of the weights themselves."""
    counts: Counter[str] = Counter()
    for name, entries in about.tensors.items():
        if "/" not in name and name != HEADS_FILE:
            for dtype, shape in entries.values():
                numbers = 1
                for side in shape:
                    numbers *= side
                counts[dtype] += numbers
    total = sum(counts.values())
    words = f"{total / 1e9:.2f} billion" if total >= 1e9 else f"{total / 1e6:.1f} million" if total >= 1e6 else f"{total:,}"
    return f"{words} parameters ({', '.join(dtype for dtype, _ in counts.most_common())})"


def _alarm(config: Mapping[str, Any], record: Mapping[str, Any] | None) -> dict[str, Any]:
    """The alarm tokens of a config, and whether their heads were trained: by the record of the run, or unknown."""
    family = next((found for found in FAMILIES.values() if found.config.model_type == config["model_type"]), None)
    if family is None:
        raise PublishError(f"config.json: model_type {config['model_type']} is none of this package's families: {', '.join(FAMILIES)}")
    try:
        visual, textual = token_ids(build.config_of(family.config, dict(config)))
    except ValueError as error:
        raise PublishError(f"config.json: {first_line(error)}") from error
    trained = "alarm_heads" in (record["recipe"].get("train") or ()) if record else None
    return {"visual": visual, "textual": textual, "trained": trained, "init": config.get("alarm_init")}


def _training(record: Mapping[str, Any], state: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """(what, value) of a run, from what it recorded; paths of the machine are cut to their last part."""
    recipe, settings = record.get("recipe") or {}, record.get("settings") or {}
    rows = [("stage", recipe.get("stage")), ("started from", recipe.get("model")), ("its revision", recipe.get("revision"))]
    rows += [("learned", ", ".join(recipe.get("train") or ())), ("LoRA rank", recipe.get("lora_rank") or None)]
    rows += [
        ("frames", f"{recipe['fps']} a second, at most {recipe['max_frames']}" if "fps" in recipe and "max_frames" in recipe else None)
    ]
    rows += [(words, settings.get(key)) for key, words in SETTINGS.items()]
    rows += [("processes", record.get("processes")), ("optimiser steps", record.get("steps")), ("hardware", record.get("hardware"))]
    losses = [entry["loss"] for entry in (state or {}).get("log_history", []) if "loss" in entry]
    rows += [("loss, first and last logged", f"{losses[0]:.4g}, {losses[-1]:.4g}" if losses else None)]
    rows += [("code", f"commit {record['commit']}" if record.get("commit") else None)]
    rows += [("versions", ", ".join(f"{name} {number}" for name, number in (record.get("versions") or {}).items()))]
    rows += [("finished", record.get("finished"))]
    return [(what, public(_short(value))) for what, value in rows if value not in (None, "")]


def _data(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(file, SHA-256) of the rows that a run learned from or was checked on."""
    return [(PurePosixPath(name).name, digest) for name, digest in (record.get("data_sha256") or {}).items()]


def _short(value: Any) -> str:
    text = str(value)
    return PurePosixPath(text).name if Path(text).is_absolute() or Path(text).exists() else text


def _own_text(about: Card, trained: bool) -> str:
    """The words of the folder's README that are its own: without what every card of build-alarm or of this command says, and without its
    word that the heads are untrained, where the run says that it `trained` them."""
    if "README.md" not in about.files:
        return ""
    raw = about.files["README.md"].read_text(encoding="utf-8")
    if OWN_START in raw:  # made by this command, and fetched
        return raw.partition(OWN_START)[2].partition(OWN_END)[0].strip()
    if START in raw and END in raw:
        raw = raw.partition(START)[0] + raw.partition(END)[2]
    text = own_words(about.files["README.md"]) if START not in raw else raw
    paragraphs = text.replace(build.USE, "").replace(build.UNTRAINED if trained else "\0", "").split("\n\n")
    return "\n\n".join(part.strip() for part in paragraphs if part.strip() and not part.strip().startswith(EVERY_CARD))
