"""Configs that cannot be, and what the command says of them: one line with the option and the mend, before anything is built or asked."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from toy_clips import CLI, project

from videosafety.dataset_builder.config import ConfigError, load

URL = "http://127.0.0.1:9/v1"


def changed(tmp_path: Path, change: dict[str, Any]) -> Path:
    """The toy project's config after a change: a dotted path -> the value that it gets."""
    file = project(tmp_path, URL, clips=0)
    body = yaml.safe_load(file.read_text())
    for place, value in change.items():
        *parts, last = place.split(".")
        part = body
        for name in parts:
            part = part[int(name)] if name.isdigit() else part.setdefault(name, {})
        part[last] = value
    file.write_text(yaml.safe_dump(body))
    return file


def refused(tmp_path: Path, change: dict[str, Any]) -> str:
    with pytest.raises(ConfigError) as error:
        load(changed(tmp_path, change))
    assert "\n" not in str(error.value)
    return str(error.value)


NUMBERS = {
    "labels.judges.0.frames": (-1, "labels.judges[0].frames must be 0 or more, got -1"),
    "describe": ({"server": "judge", "frames": -2}, "describe.frames must be 0 or more, got -2"),
    "review.sample": (-3, "review.sample must be 0 or more, got -3"),
    "shots.fps": (float("inf"), "shots.fps must be a finite number, got inf"),
    "spans.window": (float("nan"), "spans.window must be a finite number, got nan"),
    "limits.max_seconds": (10**400, "limits.max_seconds must be a finite number"),
    "limits.max_bytes": (0, "limits.max_bytes must be above 0"),
    "shots.max_pixels": (0, "shots.max_pixels must be at least 784, got 0"),
    "shots.threshold": (1.5, "shots.threshold must be in [0, 1], got 1.5"),
    "filter.min_motion": (-0.1, "filter.min_motion must be in [0, 1]"),
    "filter.duplicate_bits": (-1, "filter.duplicate_bits must be 0 or more"),
    "servers.judge.timeout": (0, "servers.judge.timeout must be above 0"),
    "sources.0.origin": ("\ud800", "sources[0].origin holds half a surrogate pair"),
}


@pytest.mark.parametrize(("place", "value", "message"), [(place, *rest) for place, rest in NUMBERS.items()], ids=NUMBERS.keys())
def test_a_value_that_means_nothing(place: str, value: Any, message: str, tmp_path: Path) -> None:
    assert message in refused(tmp_path, {place: value})


def test_a_file_that_yaml_cannot_hold(tmp_path: Path) -> None:
    (tmp_path / "build.yaml").write_text("seed: " + "1" * 5_000)
    with pytest.raises(ConfigError, match="cannot be read"):
        load(tmp_path / "build.yaml")


# --- keys -------------------------------------------------------------------------------------------------------------------------------

KEYS = {
    "a pasted key": "sk-proj-Ab1Ab1Ab1Ab1Ab1Ab1",
    "a key like a name": "AKIAABCDEFGHABCDEFGH",
    "a number": 123456789012,
    "a list": ["gsk_Ab1Ab1Ab1Ab1"],
    "with a space": "JUDGE_KEY ",
    "a name that is not set": "VIDEOSAFETY_TEST_NO_SUCH_KEY",
}


@pytest.mark.parametrize("key", KEYS.values(), ids=KEYS.keys())
def test_a_key_is_a_variable_that_is_set_and_is_never_repeated(key: Any, tmp_path: Path) -> None:
    told = refused(tmp_path, {"servers.judge.key": key})
    assert "servers.judge.key" in told
    assert not any(str(part).strip() in told for part in (key if isinstance(key, list) else [key]))


def test_a_key_in_a_variable_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "x")
    file = project(tmp_path, URL, clips=0)
    file.write_text(file.read_text().replace("  judge:\n", "  judge:\n    key: JUDGE_KEY\n"))
    assert load(file).servers["judge"].key == "JUDGE_KEY"


# --- servers that are taken for one -----------------------------------------------------------------------------------------------------


def server(**change: Any) -> dict[str, Any]:
    return {"url": URL, "model": "default", "family": "west"} | change


TWINS = {
    "another family": (server(family="south"), True),
    "another address": (server(url="http://127.0.0.1:10/v1"), True),
    "a revision each": (server(family="south", revision="abc"), False),
    "other options": (server(options={"top_p": 0.5}), False),
}


@pytest.mark.parametrize(("twin", "wrong"), TWINS.values(), ids=TWINS.keys())
def test_two_servers_with_one_name_of_a_model(twin: dict[str, Any], wrong: bool, tmp_path: Path) -> None:
    file = changed(tmp_path, {"servers.other": server(), "servers.twin": twin})
    if wrong:
        with pytest.raises(ConfigError, match=r"servers other and twin have one model and revision.*give each a revision"):
            load(file)
    else:
        assert load(file)


# --- the command ------------------------------------------------------------------------------------------------------------------------


def test_an_out_that_is_a_file_is_one_line(tmp_path: Path) -> None:
    file = project(tmp_path, URL, clips=0, out="taken")
    (tmp_path / "taken").write_text("x")
    done = subprocess.run([*CLI, "build", str(file), "--quiet"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("videosafety: ")
    assert "taken" in done.stderr
    assert done.stderr.count("\n") == 1


def test_ray_that_is_not_there_is_said_first(tmp_path: Path) -> None:
    code = f"import sys; sys.modules['ray'] = None\n{CLI[2]}"
    done = subprocess.run(
        [*CLI[:2], code, "build", str(tmp_path / "no.yaml"), "--engine", "ray"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (2, "videosafety: --engine ray needs Ray: pip install 'videosafety[build]'\n")
