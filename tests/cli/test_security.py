"""`videosafety doctor --security`: what it finds in a folder, and that it never repeats a secret."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner

from videosafety.main import app

TOKEN = "hf_" + "abcdefghij" * 4


def examined(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, list[dict[str, str]]], str]:
    monkeypatch.chdir(folder)
    result = CliRunner().invoke(app, ["doctor", "--security", "--json"])
    found: dict[str, list[dict[str, str]]] = {}
    for finding in json.loads(result.stdout):
        found.setdefault(finding["check"], []).append(finding)
    return result.exit_code, found, result.output


@pytest.fixture(autouse=True)
def no_stored_token(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path_factory.mktemp("hub") / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)


def test_a_clean_folder_is_ok(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "notes.md").write_text("nothing here", encoding="utf-8")
    code, found, _ = examined(tmp_path, monkeypatch)
    assert code == 0
    assert {finding["state"] for findings in found.values() for finding in findings} == {"ok"}


@pytest.mark.parametrize(
    ("name", "content", "check", "state", "words"),
    [
        ("run.log", f"login with {TOKEN}\n".encode(), "secrets", "problem", "run.log, line 1: holds a Hugging Face token"),
        ("a/model.pt", b"\x80\x02}q\x00.", "files that run or tell", "warning", "a/model.pt: is a pickle"),
        ("x_samples_vsb_hh.jsonl", b"{}\n", "files that run or tell", "warning", "holds queries and answers"),
        (
            "x_results.json",
            b'{"config": {"model_args": "pretrained=a/b,trust_remote_code=True"}}',
            "remote code",
            "warning",
            "no fixed commit",
        ),
        ("cfg.yaml", b"out: /home/somebody/runs\n", "home folders", "warning", "a path of a home folder"),
    ],
)
def test_what_must_not_be_shared_or_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, check: str, state: str, words: str
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    code, found, output = examined(tmp_path, monkeypatch)
    assert code == int(state == "problem")
    (finding,) = found[check]
    assert finding["state"] == state
    assert words in finding["found"]
    assert finding["mend"]
    assert TOKEN not in output


@pytest.mark.parametrize(
    "arguments", [f"pretrained=a/b,trust_remote_code=True,revision={'0' * 40}", "pretrained=a/b", "pretrained=.,trust_remote_code=1"]
)
def test_pinned_local_or_native_code_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: str) -> None:
    (tmp_path / "x_results.json").write_text(json.dumps({"config": {"model_args": arguments}}), encoding="utf-8")
    assert examined(tmp_path, monkeypatch)[1]["remote code"][0]["state"] == "ok"


def test_a_token_that_others_can_read_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Path(constants.HF_TOKEN_PATH)
    stored.write_text(TOKEN, encoding="utf-8")
    stored.chmod(0o644)
    (tmp_path / "work").mkdir()
    code, found, output = examined(tmp_path / "work", monkeypatch)
    assert (code, found["Hub token"][0]["state"]) == (1, "problem")
    assert TOKEN not in output
    stored.chmod(0o600)
    assert examined(tmp_path / "work", monkeypatch)[1]["Hub token"][0]["state"] == "ok"
