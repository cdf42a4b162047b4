"""The wheel carries every YAML, template and asset, and works in an environment of its own; nothing hidden gets into the repository."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from conftest import ROOT

PARTS = ("dataset_builder", "hf_models", "hub_cards", "lmms_eval_tasks", "training_recipes")
FOLDERS = {"cli": "videosafety"} | {name: f"videosafety/{name}" for name in PARTS}


def tracked() -> list[str]:
    listing = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if listing.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listing.stdout.splitlines() if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in tracked():  # a copy: what an earlier build left in build/ would get into the wheel
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.whl"))


def test_the_wheel_carries_every_file_of_every_package(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {name.replace(top, target, 1) for name in tracked() for top, target in FOLDERS.items() if name.startswith(f"{top}/")}
    assert wanted
    assert wanted <= inside
    stray = {name for name in inside if not name.startswith(("videosafety/", "videosafety-"))}
    assert not stray, "nothing generic lands in site-packages"


def test_an_installed_wheel_evaluates(wheel: Path, tiny: Path, cache: Path, tmp_path: Path) -> None:
    """A new environment with the wheel; what it depends on is lent to it from this one, so that the test needs no network."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "env")], check=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    zipfile.ZipFile(wheel).extractall(site)
    (site / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")  # .pth files of a lent folder, editable ones too, stay unread
    python = str(tmp_path / "env" / "bin" / "python")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    where = subprocess.run([python, "-m", "videosafety", "tasks-path"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert Path(where.stdout.strip()) == site / "videosafety" / "lmms_eval_tasks", where.stderr[-2000:]

    command = [python, "-m", "lmms_eval", "--model", "videosafety_r1", "--model_args", f"pretrained={tiny},device=cpu", "--tasks", "vsb_hh"]
    command += ["--limit", "8", "--output_path", str(tmp_path / "out"), "--log_samples"]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=280)
    found = sorted((tmp_path / "out").rglob("*_results.json"))
    assert found, done.stderr[-3000:]
    figures = json.loads(found[-1].read_text(encoding="utf-8"))["results"]["vsb_hh"]
    assert {"dsr,none", "unscored,none", "n_scored,none", "ci95_low,none"} <= set(figures)


def test_nothing_pickled_is_kept() -> None:
    assert not [name for name in tracked() if name.endswith((".pkl", ".pickle", ".pt", ".bin", ".pth"))]


def test_requirements_have_hashes_and_no_addresses() -> None:
    for name in ("requirements.txt", "requirements-assets.txt"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text
        pins = re.findall(r"^[A-Za-z0-9_.\-\[\]]+==\S+", text, re.MULTILINE)
        blocks = re.split(r"(?m)^(?=[A-Za-z0-9])", text)[1:]
        assert len(pins) == len(blocks) > 0
        assert all("--hash=sha256:" in block for block in blocks)


def test_files_are_short_and_say_what_they_are_for() -> None:
    for name in tracked():
        if name.endswith(".py") and (ROOT / name).read_text(encoding="utf-8").strip():
            text = (ROOT / name).read_text(encoding="utf-8")
            assert text.startswith(('"""', "#")), f"{name} must open with a line on what it is for"
            assert text.count("\n") <= 430, f"{name} is long: split it"
