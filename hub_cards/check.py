"""What may not go up with a checkpoint: pickles, secrets, links, somebody's answers, weights that are not whole, code that is not clean."""

from __future__ import annotations

import ast
import fnmatch
import json
import os
import re
import struct
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import get_token

from videosafety.dataset_builder.ingest import VIDEO_SUFFIXES
from videosafety.hf_models.checkpoint import first_line
from videosafety.hub_cards.upload import PublishError
from videosafety.lmms_eval_tasks.judge.redact import SECRETS

Files = dict[str, Path]  # path in the repository -> file on the disk

PICKLES = {".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"}  # the Hub's own scanner flags these
ROWS = {".arrow", ".csv", ".jsonl", ".ndjson", ".parquet", ".tsv"}  # what trainers and evaluations write prompts and answers into
MEDIA = VIDEO_SUFFIXES | {".bmp", ".flac", ".jpeg", ".jpg", ".mp3", ".ogg", ".png", ".wav", ".webp"}
ARCHIVES = {".7z", ".bz2", ".gz", ".rar", ".tar", ".tgz", ".xz", ".zip", ".zst"}
PICKLE_START = re.compile(rb"\x80[\x02-\x05]")  # the PROTO opcode, with which pickles begin since protocol 2 (PEP 307, 3154, 574)
BLOCK, OVERLAP = 1 << 22, 1 << 12  # bytes read at once, and kept from one block to the next: no secret is longer
BINARY_LIMIT = 64 << 20  # bytes: of a file that is not text, such as GGUF, the start is searched; its metadata stands there
HEADER_LIMIT = 100_000_000  # bytes of a safetensors header: the format's own limit

_SECRETS = {what: re.compile(pattern.encode()) for what, pattern in SECRETS.items()}
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSWORD", re.IGNORECASE)
HOMES = re.compile(rb"(?:/home/|/Users/|[A-Za-z]:[\\/]+Users[\\/]+)[\w.-]+|/root/[\w.-]+")

# What code that is published beside weights may import and may not call: it defines, and does nothing while it is read.
_STDLIB = "__future__ collections contextlib copy dataclasses enum functools inspect itertools math threading typing warnings"
IMPORTS = {*_STDLIB.split(), "numpy", "torch", "torchvision", "transformers"}
CALLS = {"open", "eval", "exec", "compile", "__import__", "globals", "input", "breakpoint"}
OF_TORCH = {"hub", "load", "save"}  # the network, pickles and files


class Finding(NamedTuple):
    """Something wrong with a file: what, and what to do about it. `line` counts from 1; None where there are no lines."""

    file: str
    what: str
    mend: str
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}{f', line {self.line}' if self.line else ''}: {self.what}; {self.mend}"


# --- files ----------------------------------------------------------------------------------------------------------------------


def files_of(folder: Path, exclude: Sequence[str] = ()) -> tuple[Files, list[str]]:
    """(files to publish, paths left out) of a checkpoint folder. Left out: what `exclude` names, whatever is hidden, and __pycache__.

    Args:
        exclude: patterns as in a shell, for a path from the folder or for any one part of it.

    Raises:
        PublishError: no folder, a link that leads out of it, or something that is neither file nor folder.
    """
    if not folder.is_dir():
        raise PublishError(f"{folder} is no folder: name the folder of a checkpoint")
    root, files, left_out = folder.resolve(), {}, []
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        parts = path.relative_to(folder).parts
        if any(part.startswith(".") or part == "__pycache__" for part in parts) or _matches(name, parts, exclude):
            left_out.append(name)
        elif path.is_symlink() and not path.resolve().is_relative_to(root):
            raise PublishError(f"{path} is a link that leads out of the folder: put the file itself there (cp -rL copies what links name)")
        elif path.is_file():
            files[name] = path
        elif not path.is_dir():
            raise PublishError(f"{path} is neither a file nor a folder: remove it, or leave it out with --exclude {name}")
    return files, left_out


def _walk(folder: Path) -> Iterator[Path]:
    """Everything below a folder in order; what a link names is not entered."""
    for path in sorted(folder.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _matches(name: str, parts: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatch(text, pattern.rstrip("/")) for pattern in patterns for text in (name, *parts))


def forbidden(files: Mapping[str, Path]) -> list[Finding]:
    """Pickles, archives, links to folders, and rows of evaluations with what was asked and answered."""
    found = []
    for name, path in files.items():
        suffix = path.suffix.lower()
        if fnmatch.fnmatch(path.name, "*_samples_*.jsonl"):
            mend = f"`videosafety publish results --samples-repo` has a place for it; leave it out with --exclude {path.name}"
            found.append(Finding(name, "holds queries and answers of an evaluation, which may be harmful", mend))
        elif suffix in PICKLES or _is_pickle(path):
            mend = f"save weights as safetensors, and leave this out with --exclude {path.name}"
            found.append(Finding(name, "is a pickle, which can run code when it is opened", mend))
        elif suffix in ARCHIVES:
            mend = f"unpack it, or leave it out with --exclude {path.name}"
            found.append(Finding(name, "is an archive, which cannot be looked into", mend))
    return found


def unasked(files: Mapping[str, Path], include: Sequence[str] = ()) -> list[Finding]:
    """Rows and media that `include` does not name: trainers log prompts and answers beside weights, which may be harmful or somebody's.

    Args:
        include: patterns as in a shell, for a path from the folder or for any one part of it.
    """
    found = []
    for name, path in files.items():
        suffix = path.suffix.lower()
        if suffix in ROWS | MEDIA and not _matches(name, Path(name).parts, include):
            what = "rows, which may be prompts and answers" if suffix in ROWS else "pictures or sound"
            mend = f"leave it out with --exclude {path.name}, or publish it on purpose with --include {path.name}"
            found.append(Finding(name, f"holds {what}", mend))
    return found


def _is_pickle(path: Path) -> bool:
    """By its first bytes, whatever it is called: a pickle, or a zip file with one in it, as torch.save writes."""
    with open(path, "rb") as file:
        start = file.read(4)
    if start[:2] == b"PK" and zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return any(Path(name).suffix.lower() in PICKLES for name in archive.namelist())
    return bool(PICKLE_START.match(start))


# --- secrets --------------------------------------------------------------------------------------------------------------------


def secrets(files: Mapping[str, Path]) -> list[Finding]:
    """Keys and passwords, by their form or because this process knows them. What was found is never repeated, only where it is."""
    found, patterns = [], _SECRETS | _own_secrets()
    mend = "remove it, and revoke it if others can have seen it"
    for name, path in files.items():
        for what, place in _search(path, patterns):
            found.append(Finding(name, f"holds {what}", mend, place))
        if any(pattern.search(name.encode()) for pattern in patterns.values()):
            found.append(Finding("(a file's name)", "holds a secret", "rename the file"))
    return found


def homes(files: Mapping[str, Path]) -> list[Finding]:
    """Paths of somebody's home folder, which tell a name: once a file. A warning, no refusal."""
    found = []
    for name, path in files.items():
        if places := list(_search(path, {"home": HOMES})):
            mend = "look whether you want it to be public"
            found.append(Finding(name, f"holds a path of a home folder, {len(places)} time{'s' * (len(places) > 1)}", mend, places[0][1]))
    return found


def _own_secrets() -> dict[str, re.Pattern[bytes]]:
    """The secrets of this environment and the token that uploads: found even where their form tells nothing."""
    values = {value for name, value in os.environ.items() if _SECRET_NAME.search(name) and len(value) >= 16 and not set(value) & set("/ ")}
    values |= {token} if (token := get_token()) else set()
    known = "|".join(re.escape(value) for value in sorted(values, key=len, reverse=True))
    return {"a secret of this environment": re.compile(known.encode())} if known else {}


def _search(path: Path, patterns: Mapping[str, re.Pattern[bytes]]) -> Iterator[tuple[str, int | None]]:
    """(what, line) of every match in a file, each place once. UTF-16 is ASCII with zeros in between: without them it is searched again."""
    seen: set[int] = set()
    told: set[str] = set()
    for start, lines, block in _blocks(path):
        for what, pattern in patterns.items():
            for match in pattern.finditer(block):
                if start + match.start() not in seen:
                    seen.add(start + match.start())
                    told.add(what)
                    yield what, None if lines is None else lines + block.count(b"\n", 0, match.start())
            if b"\0" in block and what not in told and pattern.search(block.replace(b"\0", b"")):
                told.add(what)
                yield what, None


def _blocks(path: Path) -> Iterator[tuple[int, int | None, bytes]]:
    """(offset, number of its first line, None in a file that is not text, bytes) of overlapping blocks: all of a text, the header of a
    safetensors file, the start of anything else."""
    with open(path, "rb") as file:
        if path.suffix == ".safetensors":
            size = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
            yield 0, None, file.read(min(size, HEADER_LIMIT))
            return
        block, start, line, text = file.read(BLOCK), 0, 1, None
        while block:
            text = b"\0" not in block if text is None else text
            yield start, line if text else None, block
            if not text and start + len(block) >= BINARY_LIMIT:
                return
            more = file.read(BLOCK)
            if not more:
                return
            step = max(0, len(block) - OVERLAP)
            start, line = start + step, line + block.count(b"\n", 0, step)
            block = block[step:] + more


# --- weights --------------------------------------------------------------------------------------------------------------------


def tensors(files: Mapping[str, Path]) -> dict[str, dict[str, tuple[str, list[int]]]]:
    """File -> tensor -> (dtype, shape), from the headers of the checkpoint's safetensors files.

    Raises:
        PublishError: no weights, a shard that the index names and that is not there, or a file that is cut short.
    """
    if "adapter_config.json" in files and "config.json" not in files:
        raise PublishError("the folder holds a PEFT adapter alone: merge it into its base first (merge_and_unload, save_pretrained)")
    for needed in ("config.json", "tokenizer_config.json"):
        if needed not in files:
            raise PublishError(f"the folder has no {needed}: name the folder of a checkpoint with its processor")
    index = "model.safetensors.index.json"
    named = sorted(set(_json(index, files[index]).get("weight_map", {}).values())) if index in files else ["model.safetensors"]
    if absent := [name for name in named if name not in files]:
        why = ", which its index names" if index in files else ""
        raise PublishError(f"the folder has no {absent[0]}{why}: the checkpoint is not whole")
    return {name: _header(name, path) for name, path in files.items() if path.suffix == ".safetensors"}


def _header(name: str, path: Path) -> dict[str, tuple[str, list[int]]]:
    with open(path, "rb") as file:
        size = struct.unpack("<Q", file.read(8).ljust(8, b"\0"))[0]
        try:
            header = json.loads(file.read(size)) if size <= HEADER_LIMIT else {}
        except ValueError:
            header = {}
    entries = {key: value for key, value in header.items() if key != "__metadata__"}
    if not entries:
        raise PublishError(f"{name} is no safetensors file, or one that is cut short: save the checkpoint again")
    end = 8 + size + max(value["data_offsets"][1] for value in entries.values())
    if path.stat().st_size != end:
        raise PublishError(f"{name} has {path.stat().st_size} bytes where its header says {end}: save the checkpoint again")
    return {key: (value["dtype"], value["shape"]) for key, value in entries.items()}


# --- code -----------------------------------------------------------------------------------------------------------------------


def code_of(files: Mapping[str, Path]) -> tuple[list[str], list[Finding]]:
    """(code files that loading runs, what is wrong): what `auto_map` of any config names, and what that imports from beside it.

    Raises:
        PublishError: a config that is no JSON object.
    """
    found, todo = [], []
    for config in (name for name in files if "/" not in name and name.endswith("config.json")):
        for kind, place in _auto_map(_json(config, files[config])):
            module, dot, cls = place.rpartition(".")
            if "--" in place:
                mend = "copy the code into the folder"
                found.append(Finding(config, f"auto_map names code of another repository for {kind}, which no revision pins", mend))
            elif not dot or f"{module}.py" not in files:
                found.append(Finding(config, f"auto_map names {place} for {kind}, and there is no {module or place}.py", "put it there"))
            elif cls not in _names(files[f"{module}.py"]):
                found.append(Finding(config, f"auto_map names {cls} for {kind}, which {module}.py does not define", "mend the name"))
            else:
                todo.append(f"{module}.py")
    model_type = str(_json("config.json", files["config.json"]).get("model_type", ""))
    if model_type.startswith("alarm_") and not todo and not found:
        mend = "save it with save_pretrained of the alarm model, or make it anew with videosafety build-alarm"
        found.append(Finding("config.json", f"model_type {model_type} needs code, and no auto_map names any", mend))
    code: list[str] = []
    while todo:
        name = todo.pop()
        if name not in code:
            code.append(name)
            problems, beside = _hygiene(name, files)
            found += problems
            todo += beside
    return sorted(code), found


def _auto_map(value: Any) -> Iterator[tuple[str, str]]:
    """(auto class, place) of every auto_map in a config and its parts."""
    for key, inner in value.items() if isinstance(value, dict) else ():
        if key == "auto_map" and isinstance(inner, dict):
            for kind, places in inner.items():
                yield from ((kind, str(place)) for place in (places if isinstance(places, list) else [places]) if place is not None)
        else:
            yield from _auto_map(inner)


def _names(path: Path) -> set[str]:
    """What a module defines or imports by name; empty where it cannot be parsed, which `_hygiene` then says."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return {path.stem}
    names = {node.name for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    return names | {alias.asname or alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}


def _hygiene(name: str, files: Mapping[str, Path]) -> tuple[list[Finding], list[str]]:
    """(what is wrong with a code file, the files beside it that it imports)."""
    try:
        tree = ast.parse(files[name].read_bytes())
    except (SyntaxError, ValueError) as error:
        return [Finding(name, f"is no Python: {first_line(error)}", "mend it")], []
    found, beside = [], []
    clean = "code that goes with weights defines and does nothing else: take it out"
    for node in ast.walk(tree):
        for module in _imported(node):
            if module.partition(".")[0] not in IMPORTS:
                found.append(Finding(name, f"imports {module}", clean, node.lineno))  # type: ignore[attr-defined]
        if isinstance(node, ast.ImportFrom) and node.level:
            for module in [node.module] if node.module else [alias.name for alias in node.names]:
                if node.level > 1 or f"{module}.py" not in files:
                    found.append(Finding(name, f"imports .{module}, and there is no {module}.py", "put it there", node.lineno))
                else:
                    beside.append(f"{module}.py")
        if isinstance(node, ast.Name) and node.id in CALLS:
            found.append(Finding(name, f"uses {node.id}", clean, node.lineno))
        if isinstance(node, ast.Attribute) and node.attr in OF_TORCH and isinstance(node.value, ast.Name) and node.value.id == "torch":
            found.append(Finding(name, f"uses torch.{node.attr}", clean, node.lineno))
    found += [Finding(name, "does something when it is imported", clean, node.lineno) for node in _work(tree.body)]
    return found, beside


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []


def _work(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that do something when they are read: anything but imports, definitions, docstrings and values without a call."""
    for node in body:
        if isinstance(node, ast.ClassDef):
            yield from _work(node.body)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            if any(isinstance(part, ast.Call) for part in ast.walk(node)):
                yield node
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef | ast.Pass) and not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            yield node


def _json(name: str, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise PublishError(f"{name} is no JSON: {first_line(error)}") from error
    if not isinstance(value, dict):
        raise PublishError(f"{name} holds no JSON object")
    return value
