"""What is published: code that does nothing but define, and folders that load with transformers alone, in a process of their own."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from alarm_cases import NAMES, encode, folder, model, processor, user, video

from videosafety.hf_models.alarm_core import AUTO_CLASSES
from videosafety.hf_models.families import FAMILIES, TEMPLATES

SOURCES = TEMPLATES.parent
PUBLISHED = sorted([SOURCES / "alarm_core.py", *SOURCES.glob("*_alarm_*.py")])
ALLOWED = {
    "__future__", "contextlib", "dataclasses", "functools", "inspect", "threading", "torch", "transformers", "typing",
}  # fmt: skip
FORBIDDEN = {"open", "eval", "exec", "compile", "__import__", "globals", "input", "breakpoint"}


# --- a fresh process ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a process without videosafety sees of all six."""
    scratch, cases = tmp_path_factory.mktemp("fresh"), {}
    for name in NAMES:
        net, inputs = model(name), encode(name, [user(video(), "What happens in this video?")])
        with torch.no_grad():
            out = net(**inputs)
        made = net.generate(**inputs, max_new_tokens=6, do_sample=False, return_dict_in_generate=True)
        chat = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What now?"}]}]
        cases[name] = {
            "folder": str(folder(name)),
            "inputs": inputs,
            "logits": out.logits,
            "alarm_logits": out.alarm_logits,
            "sequences": made.sequences,
            "alarm_probs": made.alarm_probs,
            "prompt": processor(name).apply_chat_template(chat, tokenize=False, add_generation_prompt=True),
        }
    torch.save(cases, scratch / "cases.pt")
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("alarm_fresh.py")), str(scratch)],
        cwd=scratch,
        env=env | {"HF_MODULES_CACHE": str(scratch / "modules"), "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((scratch / "found.json").read_text())


@pytest.mark.parametrize("name", NAMES)
def test_transformers_alone_gives_the_very_same_model(name: str, fresh: dict[str, Any]) -> None:
    assert fresh["videosafety"] is False
    assert {key: value for key, value in fresh[name].items() if value is not True} == {"refused": fresh[name]["refused"]}


@pytest.mark.parametrize("name", NAMES)
def test_without_trust_remote_code_it_is_refused(name: str, fresh: dict[str, Any]) -> None:
    *models, processors = fresh[name]["refused"]
    assert all("trust_remote_code=True" in says for says in models), models
    assert ("trust_remote_code=True" in processors) == (name == "smolvlm")  # the others' processors are transformers' own


# --- the folder -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_holds_the_code_as_it_stands_and_no_more(name: str) -> None:
    out, own = folder(name), SOURCES / f"processing_alarm_{name}.py"
    code = {"alarm_core.py", f"configuration_alarm_{name}.py", f"modeling_alarm_{name}.py"} | ({own.name} if own.is_file() else set())
    assert {path.name for path in out.glob("*.py")} == code
    assert all((out / file).read_bytes() == (SOURCES / file).read_bytes() for file in code)
    others = {path.name for path in out.iterdir()} - code
    assert others == {
        "README.md", "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors", "processor_config.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_every_auto_class_names_the_one_model(name: str) -> None:
    config = json.loads((folder(name) / "config.json").read_text())
    prefix = FAMILIES[name].prefix
    place = f"modeling_alarm_{name}.Alarm{prefix}ForConditionalGeneration"
    assert config["auto_map"] == {
        "AutoConfig": f"configuration_alarm_{name}.Alarm{prefix}Config",
        **dict.fromkeys(AUTO_CLASSES, place),
    }
    assert config["model_type"] == f"alarm_{FAMILIES[name].base_type}"
    assert config["architectures"] == [place.partition(".")[2]]
    assert "videosafety" not in json.dumps({key: value for key, value in config.items() if key != "note"})


# --- the code -------------------------------------------------------------------------------------------------------------------


def imports(tree: ast.Module) -> set[str]:
    found = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    found |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.partition(".")[0] for name in found}


def work(body: list[ast.stmt]) -> list[str]:
    """Statements that do something when they are read: anything but imports, definitions and values without a call."""
    found = []
    for node in body:
        if isinstance(node, ast.ClassDef):
            found += work(node.body) + [ast.unparse(decorator) for decorator in node.decorator_list]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found += [ast.unparse(node)] if any(isinstance(part, ast.Call) for part in ast.walk(node)) else []
        elif not isinstance(node, ast.Import | ast.ImportFrom | ast.FunctionDef) and not (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        ):
            found.append(ast.unparse(node))
    return found


def hygiene(source: str) -> set[str]:
    """What a published file may not have."""
    tree = ast.parse(source)
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    return (imports(tree) - ALLOWED) | (names & FORBIDDEN) | set(work(tree.body))


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.name)
def test_published_code_only_defines(file: Path) -> None:
    source = file.read_text(encoding="utf-8")
    assert hygiene(source) == set()
    assert len(source.splitlines()) < 400
    if file.stem.startswith(("modeling", "configuration", "processing")):
        assert file.stem.rpartition("alarm_")[2] in FAMILIES


@pytest.mark.parametrize(
    "source",
    [
        "import os", "from os.path import join", "import subprocess as s", "def f():\n    import socket",
        "import torch.os; import requests",
        "x = open('f')", "def f():\n    return eval('1')", "exec('1')", "print('hello')", "x = list(range(3))",
        "class A:\n    x = dict()", "for n in []: pass", "from huggingface_hub import hf_hub_download",
    ],
)  # fmt: skip
def test_the_hygiene_test_finds_what_it_should(source: str) -> None:
    assert hygiene(source)


def test_each_family_has_its_files() -> None:
    kinds = {f"{kind}_alarm_{name}.py" for kind in ("modeling", "configuration") for name in NAMES}
    assert {file.name for file in PUBLISHED} == kinds | {"alarm_core.py", "processing_alarm_smolvlm.py"}
