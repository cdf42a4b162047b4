"""The demo page: what it says of a clip and a question, served for real, seen in headless Chromium; and the folder of its Space."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from videosafety.hf_models.guard import Guard
from videosafety.hf_models.tiny import build_tiny
from videosafety.hub_cards import demo_app
from videosafety.main import app

pytest.importorskip("gradio")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny(tmp_path_factory.mktemp("demo") / "model", "videollama3", 0, alarm=True)


@pytest.fixture(scope="module")
def guard(model: Path) -> Guard:
    return Guard.load(str(model), device="cpu")


@pytest.fixture(scope="module")
def clip() -> Path:
    return demo_app.safe_clips(1)[0]


def test_a_question_about_a_clip(guard: Guard, clip: Path) -> None:
    shown = demo_app.ask(guard, clip, "What happens?", max_new_tokens=4)
    (row,) = guard.judge([_row(clip, "What happens?")])
    assert shown.error is None
    assert (shown.visual, shown.textual) == pytest.approx((row["p_visual"], row["p_textual"]), abs=1e-5)
    assert len(shown.timeline.axes) >= 2  # the curve, and a frame at its peak


def _row(clip: Path, text: str):
    from videosafety.hf_models.guard import Row

    return Row("demo", text, video=clip)


def test_words_alone_have_no_visual_probability_and_no_timeline(guard: Guard) -> None:
    shown = demo_app.ask(guard, None, "What is a bee?", max_new_tokens=2)
    assert (shown.visual, shown.timeline, shown.error) == (None, None, None)
    assert "no probability" in demo_app.bars(shown, {"visual": 0.5, "textual": 0.5})


@pytest.mark.parametrize(("guarded", "refused"), [(True, True), (False, False)])
def test_an_alarm_stands_in_the_answers_place_only_where_asked(guard: Guard, clip: Path, guarded: bool, refused: bool) -> None:
    from videosafety.hf_models.calibrate import Calibration, Threshold

    strict = replace_calibration(guard, Calibration(Threshold(0.0), Threshold(0.0)))
    shown = demo_app.ask(strict, clip, "What happens?", guarded, max_new_tokens=4)
    assert shown.flagged
    assert (shown.answer == demo_app.REFUSAL) == refused


def replace_calibration(guard: Guard, calibration) -> Guard:
    return Guard(guard.model, guard.processor, guard.sampling, calibration)


@pytest.mark.parametrize(("name", "content", "words"), [("x.mp4", b"no video", "x.mp4"), (None, b"", "Pick or upload")])
def test_what_cannot_be_answered_is_said(guard: Guard, tmp_path: Path, name: str | None, content: bytes, words: str) -> None:
    path = tmp_path / name if name else None
    if path:
        path.write_bytes(content)
    shown = demo_app.ask(guard, path, "What happens?" if path else " ")
    assert words in str(shown.error)
    assert (shown.answer, shown.visual) == ("", None)


def test_clips_to_pick_are_safe_ones() -> None:
    from videosafety.lmms_eval_tasks.vsb import dataset

    safe = {row["video_id"] for row in dataset.rows("safeq")}
    assert {clip.stem for clip in demo_app.safe_clips(2)} <= safe


# --- served -------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def url(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "videosafety.main", "demo-app", "--model", str(model), "--port", str(port), "--device", "cpu"]
    log = tmp_path_factory.mktemp("log") / "demo.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, stdout=sink, stderr=subprocess.STDOUT, env=os.environ | {"GRADIO_ANALYTICS_ENABLED": "False"})
        try:
            for _ in range(240):
                assert server.poll() is None, log.read_text()[-2000:]
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/config", timeout=5):
                        break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(30)


def test_the_served_page_answers(url: str, clip: Path) -> None:
    from gradio_client import Client, handle_file

    client = Client(url, verbose=False)
    answer, probabilities, figure = client.predict(handle_file(str(clip)), "What happens?", False, api_name="/ask")
    assert answer
    assert len(re.findall(r"p\(harmful\), what is (?:shown|asked)</span><b[^>]*>0\.\d{3}</b>", probabilities)) == 2
    assert figure["plot"].startswith("data:image/")
    assert len(base64.b64decode(figure["plot"].partition(",")[2])) > 5_000


def test_files_of_this_machine_are_not_served(url: str, model: Path) -> None:
    for path in ("/etc/passwd", str(model / "config.json")):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{url}/gradio_api/file={path}", timeout=10)
        assert refused.value.code in (403, 404)


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_is_drawn(url: str, tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1280,1000"]
    subprocess.run(
        [str(CHROMIUM), *flags, "--virtual-time-budget=15000", f"--screenshot={shot}", url], check=True, capture_output=True, timeout=120
    )
    colours = Image.open(shot).convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 100  # a blank or failed page has a handful


# --- Space --------------------------------------------------------------------------------------------------------------------------


def test_a_space_pins_the_model(tmp_path: Path) -> None:
    commit = "0123456789abcdef" * 2 + "01234567"
    result = CliRunner().invoke(app, ["demo-app", "--model", "org/model", "--revision", commit, "--space", str(tmp_path / "space")])
    assert result.exit_code == 0, result.output
    files = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "space").iterdir()}
    assert set(files) == set(demo_app.FILES)
    compile(files["app.py"], "app.py", "exec")
    assert commit in files["app.py"]
    card = yaml.safe_load(files["README.md"].split("---")[1])
    assert (card["sdk"], card["app_file"], card["models"]) == ("gradio", "app.py", ["org/model"])
    assert len(card["short_description"]) <= 60
    assert json.dumps(card)


@pytest.mark.parametrize("revision", ["main", "", "abc"])
def test_a_space_without_a_commit_is_refused(tmp_path: Path, revision: str) -> None:
    result = CliRunner().invoke(app, ["demo-app", "--model", "org/model", "--revision", revision, "--space", str(tmp_path / "space")])
    assert result.exit_code == 2
    assert "whole commit" in result.output
