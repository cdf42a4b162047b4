"""Folders of checkpoints: where one is, what it holds, and its tensors, read without running anything that is in it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open

Tensors = dict[str, torch.Tensor]
FILES = ["*.json", "*.txt", "*.jinja", "*.model", "README.md"]  # of a repository: never its code


def check_empty(out: Path) -> None:
    """Raises ValueError where `out` is a file or a folder with something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: name a new folder with --out")


def first_line(error: Exception) -> str:
    """The first line of an error's message: those of transformers run to many."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def read_json(file: Path) -> dict[str, Any]:
    """An object from a JSON file.

    Raises:
        ValueError: no such file, or not that; names the file.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {first_line(error)}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds no JSON object")
    return found


def fetch(source: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """The folder of a checkpoint: `source` itself, or the files of a Hub id, with or without its weights (never its code).

    Raises:
        ValueError: no such folder or repository.
    """
    if Path(source).is_dir():
        return Path(source)
    try:
        kinds = ("*.safetensors", "*.bin") if weights else ("",)
        for kind in kinds:  # never both: they hold the same
            folder = Path(snapshot_download(str(source), revision=revision, allow_patterns=[*FILES, kind]))
            if any(folder.glob("*.safetensors")):
                break
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{source} is neither a folder nor a repository that can be had: {first_line(error)}") from error
    return folder


def read_weights(folder: Path, prefixes: tuple[str, ...] = ("",)) -> Tensors:
    """The tensors of a checkpoint folder whose names start with one of `prefixes`, on the CPU: of safetensors where there are some, else
    of .bin files, read as plain tensors only.

    Raises:
        ValueError: no weights, a shard that the index names and that is not there, or a file that cannot be read as tensors.
    """
    for stem, suffix in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{suffix}.index.json"
        files = sorted(folder.glob(f"{stem}.{suffix}"))
        if index.is_file():
            named = read_json(index).get("weight_map")
            if not isinstance(named, dict):
                raise ValueError(f"{index} has no weight_map: the download is not complete")
            files = [folder / name for name in sorted(set(named.values()))]
            absent = [file.name for file in files if not file.is_file()]
            if absent:
                raise ValueError(f"{folder} lacks {some(absent)}, which {index.name} names: the download is not complete")
        if files:
            return {key: tensor for file in files for key, tensor in _read(file, prefixes).items()}
    if any(folder.glob("global_step*")):
        raise ValueError(f"{folder} holds only DeepSpeed shards: run its zero_to_fp32.py first")
    raise ValueError(f"{folder} holds no model.safetensors and no pytorch_model.bin")


def _read(file: Path, prefixes: tuple[str, ...]) -> Tensors:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as opened:
                return {key: opened.get_tensor(key) for key in opened.keys() if key.startswith(prefixes)}  # noqa: SIM118 (not a dict)
        found = torch.load(file, map_location="cpu", weights_only=True)  # a pickle can run code; this reads nothing but tensors
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(f"{file} cannot be read as tensors only: {first_line(error)}") from error
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{file} is no state dict: it holds something other than named tensors")
    return {key: tensor for key, tensor in found.items() if key.startswith(prefixes)}


def some(names: list[str]) -> str:
    """The first three of a list."""
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
