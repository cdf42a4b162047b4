"""The command `videosafety`: each command's good and bad uses, with exit statuses; `--help` imports nothing heavy."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from conftest import write_set
from videosafety import doctor
from videosafety.lmms_eval_tasks import video
from videosafety.main import app

HEAVY = ("torch", "transformers", "lmms_eval", "datasets", "numpy", "av", "matplotlib")


def call(*args: str) -> Result:
    return CliRunner().invoke(app, list(args))


def one_error_line(result: Result) -> str:
    """The message of a wrong use: one line on stderr, nothing on stdout, exit status 2."""
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("videosafety: ")
    return line


# --- tasks-path, tiny, report -----------------------------------------------------------------------------------------------------


def test_tasks_path_is_the_folder_of_our_tasks() -> None:
    result = call("tasks-path")
    assert result.exit_code == 0
    (path,) = result.stdout.splitlines()
    assert (Path(path) / "vsb" / "vsb_hh.yaml").is_file()


@pytest.mark.parametrize(("family", "plain"), [("videollama3", True), ("videollama3", False), ("qwen3_vl", False)])
def test_tiny_writes_a_checkpoint_and_says_how_to_try_it(family: str, plain: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, trust = tmp_path / "a" / "model", not plain
    result = call("tiny", "--out", str(folder), "--seed", "3", "--family", family, *["--plain"] * plain)
    assert result.exit_code == 0, result.output
    args = f"pretrained={folder}{',trust_remote_code=True' * trust}"
    assert f"lmms-eval --model videosafety_r1 --model_args {args} --tasks vsb_hh" in result.stdout
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=trust)
    assert model.num_parameters() < 1_000_000
    assert hasattr(model, "alarm_heads") == trust
    assert ("<|visual_alarm|>" in AutoProcessor.from_pretrained(folder, trust_remote_code=trust).chat_template) == trust


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param(["--family", "llama"], "unknown family 'llama': there are videollama3, qwen2_5_vl", id="unknown family"),
        pytest.param(["--family", "llama", "--plain"], "unknown family 'llama': there are videollama3", id="unknown family, plain"),
    ],
)
def test_what_tiny_cannot_do_is_one_line(tmp_path: Path, args: list[str], says: str) -> None:
    assert says in one_error_line(call("tiny", "--out", str(tmp_path / "model"), *args))
    assert not (tmp_path / "model").exists()


def test_tiny_does_not_say_done_where_a_file_is_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "model").write_text("mine")
    result = call("tiny", "--out", str(tmp_path / "model"))
    assert str(tmp_path / "model") in one_error_line(result)
    assert (tmp_path / "model").read_text() == "mine"


@pytest.mark.parametrize("there", [True, False], ids=["an empty folder", "no such folder"])
def test_a_report_of_nothing_is_one_line_that_names_the_folder(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "runs [x]"  # brackets are markup to rich
    if there:
        folder.mkdir()
    assert str(folder) in one_error_line(call("report", str(folder)))
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("args", [["report"], ["tiny"], ["nonsense"], ["tiny", "--out", "x", "--seed", "many"], ["doctor", "extra"]])
def test_wrong_use_has_status_2_and_no_traceback(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*args)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# --- doctor -----------------------------------------------------------------------------------------------------------------------


def examine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, dict[str, Any]]]:
    """Exit status and findings by check, of `videosafety doctor --json` in `folder`."""
    monkeypatch.chdir(folder)
    result = call("doctor", "--json")
    findings = json.loads(result.stdout)
    assert all(set(finding) == {"check", "state", "found", "mend"} for finding in findings)
    for finding in findings:
        assert finding["state"] in ("ok", "warning", "problem")
        assert finding["found"]
        assert finding["mend"] or finding["state"] != "problem", f"a problem without a mend: {finding}"
    return result.exit_code, {finding["check"]: finding for finding in findings}


def test_doctor_finds_nothing_wrong_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, findings = examine(tmp_path, monkeypatch)
    assert [finding for finding in findings.values() if finding["state"] == "problem"] == []
    assert status == 0
    named = {"lmms-eval", "plugin", "tasks", "model", "video by pyav", "judge", "VSB-Open", "local data", "device"}
    assert named <= set(findings)
    assert "vsb_hh" in findings["tasks"]["found"]
    assert re.search(r"\d+ of 304 clips", findings["VSB-Open"]["found"])
    assert list(tmp_path.iterdir()) == []  # looking leaves no trace


@pytest.mark.parametrize("name", ["vsb_hh", "vsb", "vse_safeq", "figstep_tiny", "videosafety"])
def test_doctor_sees_a_folder_that_hides_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "vsb_hs").write_text("a file hides nothing")
    (tmp_path / "results").mkdir()
    status, findings = examine(tmp_path, monkeypatch)
    assert status == 1
    finding = findings["working directory"]
    assert (finding["state"], finding["mend"]) == ("problem", f"rename it, or run lmms-eval elsewhere: mv {name} {name}_data")
    assert f"the folder {name}/ hides" in finding["found"]


def test_doctor_sees_an_unknown_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOSAFETY_JUDGE", "nonsense")
    status, findings = examine(tmp_path, monkeypatch)
    assert (status, findings["judge"]["state"]) == (1, "problem")
    assert "unknown judge 'nonsense'" in findings["judge"]["found"]
    assert "unset VIDEOSAFETY_JUDGE" in findings["judge"]["mend"]


@pytest.mark.parametrize(
    ("value", "state", "found"),
    [
        pytest.param("{}/missing", "problem", "is no folder", id="no folder"),
        pytest.param("{}/empty", "ok", "no data sets", id="an empty folder"),
        pytest.param("{}/data", "ok", "vsb, vse", id="two sets"),
        pytest.param("", "ok", "is not set", id="set to nothing, which is not set"),
        pytest.param("~/data", "ok", "vsb, vse", id="a home folder"),
    ],
)
def test_doctor_looks_at_local_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str, state: str, found: str) -> None:
    for name in ("vsb", "vse"):
        write_set(tmp_path / "data" / name, [])
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("VIDEOSAFETY_DATA_DIR", value.format(tmp_path))
    (finding,) = (finding for finding in doctor.data() if finding.check == "local data")
    assert (finding.state, found in finding.found) == (state, True), finding


@pytest.mark.parametrize(
    ("version", "state"),
    [("0.7.2", "warning"), ("0.7.3", "ok"), ("0.7.10", "ok"), ("0.7.4.dev1", "ok"), ("0.8.0", "warning"), ("1", "warning")],
)
def test_doctor_knows_the_versions_of_lmms_eval(monkeypatch: pytest.MonkeyPatch, version: str, state: str) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda name: version)
    finding = next(doctor.lmms_eval_seen())
    assert (finding.check, finding.state, version in finding.found) == ("lmms-eval", state, True)


def test_doctor_sees_that_lmms_eval_or_the_entry_point_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.metadata, "entry_points", lambda group: ())
    assert [(finding.check, finding.state) for finding in doctor.lmms_eval_seen()] == [("lmms-eval", "ok"), ("plugin", "problem")]

    def missing(name: str) -> str:
        raise doctor.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.importlib.metadata, "version", missing)
    (finding,) = doctor.lmms_eval_seen()
    assert (finding.state, finding.mend) == ("problem", "pip install 'lmms_eval>=0.7.3,<0.8'")


def test_only_the_default_decoder_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "backend_problem", lambda backend: f"{backend} is broken")
    states = {finding.check: (finding.state, bool(finding.mend)) for finding in doctor.decoders()}
    assert states.pop("video by pyav") == ("problem", True)
    assert set(states.values()) == {("warning", False)}


def test_doctor_shows_a_table_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor.Finding("check [1]", "problem", "found [x]", "mend [y]")
    monkeypatch.setattr(doctor, "examine", lambda folder: [finding, doctor.Finding("other", "ok", "fine")])
    result = call("doctor")
    assert result.exit_code == 1
    assert all(text in result.stdout for text in ("check [1]", "found [x]", "→ mend [y]", "off", "other", "fine"))


# --- start ------------------------------------------------------------------------------------------------------------------------


def test_the_command_starts_without_anything_heavy() -> None:
    code = f"import sys, videosafety.main; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("front", ["script", "-m"])
def test_help_names_every_command(front: str) -> None:
    command = [str(Path(sys.executable).with_name("videosafety"))] if front == "script" else [sys.executable, "-m", "videosafety"]
    done = subprocess.run([*command, "--help"], capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"})
    assert done.returncode == 0
    assert re.findall(r"(?m)^\W*(tasks-path|doctor|tiny|report)\b", done.stdout) == ["tasks-path", "doctor", "tiny", "report"]
