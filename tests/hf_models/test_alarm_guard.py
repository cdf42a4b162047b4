"""The guard: one prefill a row, the same alone and in batches, an error and never a probability where media cannot be read."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from guard_model import alarm, guard, media  # noqa: F401
from typer.testing import CliRunner, Result

from videosafety.hf_models.calibrate import Calibration, Threshold
from videosafety.hf_models.families import FAMILIES
from videosafety.hf_models.guard import NO_TEXT, NO_TOKEN, NO_VISUALS, Guard, Row, rows_of_file, rows_of_folder
from videosafety.hf_models.tiny import build_tiny
from videosafety.lmms_eval_tasks.video import Sampling
from videosafety.main import app

BROKEN = {
    "gone.mp4": "no such file",
    "text.mp4": "not a readable video",
    "none.mp4": "the file is empty",
    "cut.mp4": "truncated, 1 of 40 frames",
    "text.png": "not a readable image",
}


def row(media: Path, name: str, text: str = "What happens?") -> Row:
    file = media / name
    return Row(name, text, image=file) if name.endswith(".png") else Row(name, text, video=file)


@pytest.fixture
def rows(media: Path) -> list[Row]:
    texts = [Row("t1", "Only text."), Row("t2", "Some other text, a little longer than the one before.")]
    return [row(media, "a.mp4"), row(media, "b.mp4", "How long is it?"), row(media, "i.png"), *texts, row(media, "a.mp4", "And now?")]


def near(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> None:
    figures = ("p_visual", "p_textual")
    assert [{k: v for k, v in f.items() if k not in figures} for f in found] == [
        {k: v for k, v in w.items() if k not in figures} for w in wanted
    ]
    for f, w in zip(found, wanted, strict=True):
        assert [f[k] for k in figures] == pytest.approx([w[k] for k in figures], abs=2e-5), w["id"]


def test_a_row_is_what_the_model_says_of_the_prompt_that_evaluation_makes(guard: Guard, rows: list[Row]) -> None:
    from videosafety.hf_models.guard import Decoder, _request
    from videosafety.lmms_eval_tasks.inputs import model_inputs
    from videosafety.lmms_eval_tasks.pipeline import load

    inputs = model_inputs(guard.processor, [load(_request(0, rows[0]), Decoder(Sampling()))])
    assert inputs["pixel_values_videos"].numel() > 0
    with torch.no_grad():
        wanted = guard.model(**inputs).alarm_probs[0].tolist()
    (found,) = guard.judge(rows[:1])
    assert [found["p_visual"], found["p_textual"]] == pytest.approx(wanted, abs=1e-6)
    assert all(0 < p < 1 for p in wanted)


@pytest.mark.parametrize("batch_size", [2, 8])
def test_batches_equal_single_rows_in_order(guard: Guard, rows: list[Row], batch_size: int) -> None:
    single = list(guard.judge(rows, batch_size=1))
    assert [r["id"] for r in single] == [r.id for r in rows]
    assert len({r["p_textual"] for r in single}) == len(rows), "probabilities must depend on the prompts for this test to mean anything"
    near(list(guard.judge(rows, batch_size=batch_size)), single)


def test_nothing_is_generated(guard: Guard, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    monkeypatch.setattr(guard.model, "generate", lambda **_: pytest.fail("generated"))
    backbone = guard.model.base_model.forward
    monkeypatch.setattr(guard.model.base_model, "forward", lambda *a, **k: (calls.append(1), backbone(*a, **k))[1])
    monkeypatch.setattr(guard.model.lm_head, "forward", lambda *_: pytest.fail("the language-model head is not needed"))
    list(guard.judge(rows[:2], batch_size=2))
    assert calls == [1]


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_read_is_an_error_and_no_probability(guard: Guard, media: Path, name: str) -> None:
    good = [row(media, "a.mp4"), row(media, "b.mp4")]
    alone = list(guard.judge(good, batch_size=1))
    found = list(guard.judge([good[0], row(media, name), good[1]], batch_size=4))
    assert BROKEN[name] in found[1]["error"]
    assert [found[1][key] for key in ("p_visual", "p_textual", "flagged")] == [None] * 3
    near([found[0], found[2]], alone)


def test_a_row_that_the_processor_refuses_leaves_its_batch_alone(guard: Guard, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    from videosafety.lmms_eval_tasks import inputs

    original = inputs.model_inputs

    def fussy(processor: Any, batch: list[Any]) -> Any:
        if any(len(item.clips[0].frames) == 3 for item in batch):
            raise ValueError("t:3 must be\nlarger")
        return original(processor, batch)

    monkeypatch.setattr(inputs, "model_inputs", fussy)
    found = list(guard.judge([rows[0], rows[1], rows[5]], batch_size=3))
    assert [f["error"] for f in found] == [None, "the processor refused it: t:3 must be larger", None]
    assert found[1]["p_visual"] is None


OUT_OF_MEMORY = {
    "on a GPU": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nSee the manual"),
    "on a CPU": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"),
    "in numpy": lambda: MemoryError("Unable to allocate 9 GiB"),
}


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_where_memory_runs_out_prefills_get_smaller(guard: Guard, rows: list[Row], kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, sizes = list(guard.judge(rows, batch_size=1)), []
    original = guard.model.alarm_probs

    def small(**inputs: Any) -> torch.Tensor:
        sizes.append(len(inputs["input_ids"]))
        if sizes[-1] > 1:
            raise OUT_OF_MEMORY[kind]()
        return original(**inputs)

    monkeypatch.setattr(guard.model, "alarm_probs", small)
    near(list(guard.judge(rows, batch_size=2)), wanted)
    assert sizes == [2, *[1] * len(rows)], "once is enough to learn how many fit"


@pytest.mark.parametrize("kind", OUT_OF_MEMORY)
def test_a_row_too_large_for_memory_is_an_error_and_takes_no_other_along(
    guard: Guard, rows: list[Row], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, original = list(guard.judge(rows, batch_size=1)), guard.model.alarm_probs
    longest = max(rows, key=lambda r: len(r.text))

    def small(**inputs: Any) -> torch.Tensor:
        if any(longest.text in text for text in guard.processor.tokenizer.batch_decode(inputs["input_ids"])):
            raise OUT_OF_MEMORY[kind]()
        return original(**inputs)

    monkeypatch.setattr(guard.model, "alarm_probs", small)
    found = list(guard.judge(rows, batch_size=2))
    (lost,) = [n for n, result in enumerate(found) if result["error"]]
    assert rows[lost] == longest
    assert found[lost]["error"].startswith("out of memory on this one request (")
    assert "\n" not in found[lost]["error"]
    assert [found[lost][key] for key in ("p_visual", "p_textual", "flagged")] == [None] * 3
    near(found[:lost] + found[lost + 1 :], wanted[:lost] + wanted[lost + 1 :])


def test_of_nothing_there_is_no_probability(guard: Guard, media: Path) -> None:
    words, clip = guard.judge([Row("words", "How?"), row(media, "a.mp4", "")])
    assert (words["p_visual"], words["missing"]) == (None, {"visual": NO_VISUALS})
    assert (clip["p_textual"], clip["missing"]) == (None, {"textual": NO_TEXT})
    assert words["p_textual"] is not None
    assert clip["p_visual"] is not None


def test_a_prompt_without_tokens_is_null_with_the_reason(guard: Guard, media: Path) -> None:
    result = guard.result(row(media, "a.mp4"), (math.nan, math.nan))
    assert (result["p_visual"], result["p_textual"], result["flagged"]) == (None, None, None)
    assert result["missing"] == {"visual": NO_TOKEN, "textual": NO_TOKEN}
    json.dumps(result, allow_nan=False)


def test_the_calibration_decides_what_is_flagged(guard: Guard, media: Path) -> None:
    asked = row(media, "a.mp4")
    strict = Guard(guard.model, guard.processor, calibration=Calibration(Threshold(0.0), Threshold(0.0)))
    lax = Guard(guard.model, guard.processor, calibration=Calibration(Threshold(1.0), Threshold(1.0)))
    assert [next(iter(g.judge([asked])))["flagged"] for g in (strict, lax)] == [True, False]


def test_frames_are_sampled_as_asked(guard: Guard, media: Path) -> None:
    few = Guard(guard.model, guard.processor, sampling=Sampling(max_frames=1))
    a, b = (next(iter(g.judge([row(media, "a.mp4")]))) for g in (guard, few))
    assert a["p_visual"] != b["p_visual"]


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "videollama3"])
def test_every_family_says_the_same_alone_and_in_batches(family: str, rows: list[Row], tmp_path: Path) -> None:
    """Some stack the clips of a batch, and one tells all its prompts the longest clip's length: those must part ways."""
    other = Guard.load(str(build_tiny(tmp_path / family, family=family)), device="cpu")
    single = list(other.judge(rows, batch_size=1))
    assert not [r["error"] for r in single if r["error"]]
    near(list(other.judge(rows, batch_size=4)), single)


# --- rows -----------------------------------------------------------------------------------------------------------------------------


def test_a_folder_is_its_videos_and_images(media: Path) -> None:
    found = rows_of_folder(media, "Hm?")
    assert (
        [r.id for r in found] == sorted(r.id for r in found) == ["a.mp4", "b.mp4", "cut.mp4", "i.png", "none.mp4", "text.mp4", "text.png"]
    )
    assert {r.text for r in found} == {"Hm?"}
    assert [r.id for r in found if r.image] == ["i.png", "text.png"]


def test_a_file_of_rows_keeps_labels_and_drops_old_figures(tmp_path: Path) -> None:
    entry = {"video": "sub/a.mp4", "text": "Why?\u2028", "visual_label": 1, "p_visual": 0.3, "missing": {}, "note": "é"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(entry, ensure_ascii=False) + "\n\n" + json.dumps({"id": 7, "image": "i.png"}))
    first, second = rows_of_file(tmp_path / "rows.jsonl", "default")
    assert first == Row("1", "Why?\u2028", video=tmp_path / "sub/a.mp4", extra={"visual_label": 1, "note": "é"})
    assert second == Row("7", "default", image=tmp_path / "i.png")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param('{"video": "a.mp4"}\n{"video": ', r"line 2: not JSON", id="cut"),
        pytest.param('["a.mp4"]', r"line 1: list where an object is wanted", id="a list"),
        pytest.param('{"video": 3}', r"line 1: video must be a path, got 3", id="a number for a path"),
        pytest.param('{"image": ""}', r"line 1: image must be a path, got ''", id="an empty path"),
        pytest.param('{"video": "a.mp4", "text": null}', r"line 1: text must be a string, got None", id="null for text"),
        pytest.param('{"id": "x"}', r"line 1: neither video nor image nor text", id="nothing to judge"),
        pytest.param("\n\n", r"no rows in it", id="empty"),
    ],
)
def test_a_line_that_is_no_row_is_named(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=says):
        rows_of_file(tmp_path / "rows.jsonl")


# --- loading and the command ----------------------------------------------------------------------------------------------------------


def call(*args: str) -> Result:
    return CliRunner().invoke(app, ["guard", *args])


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_the_command_judges_one_video(alarm: Path, guard: Guard, media: Path) -> None:
    result = call("--model", str(alarm), "--device", "cpu", "--video", str(media / "a.mp4"), "--text", "What happens?")
    assert result.exit_code == 0, result.output
    near(lines(result), [r | {"id": r["video"]} for r in guard.judge([row(media, "a.mp4")])])


def test_the_command_judges_a_folder_and_says_that_some_rows_failed(alarm: Path, media: Path, tmp_path: Path) -> None:
    result = call("--model", str(alarm), "--device", "cpu", "--dir", str(media), "--text", "Hm?", "--out", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 1
    assert "4 of 7 rows could not be judged" in result.stderr
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert {r["id"]: r["error"] is None for r in found} == {r["id"]: r["id"] in ("a.mp4", "b.mp4", "i.png") for r in found}


def test_the_command_carries_labels_on_to_calibration(alarm: Path, media: Path, tmp_path: Path) -> None:
    rows = [{"text": f"Question {n}?", "textual_label": n % 2} for n in range(6)] + [{"video": "gone.mp4", "visual_label": 1}]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    scored, fitted = tmp_path / "scored.jsonl", tmp_path / "calibration.json"
    assert call("--model", str(alarm), "--device", "cpu", "--jsonl", str(tmp_path / "rows.jsonl"), "--out", str(scored)).exit_code == 1
    result = call("calibrate", "--labels", str(scored), "--target", "0", "--out", str(fitted), "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["textual"]["n"], told["visual"]) == (6, None)
    again = call("--model", str(alarm), "--device", "cpu", "--jsonl", str(tmp_path / "rows.jsonl"), "--calibration", str(fitted))
    flagged = [r["flagged"] for r in lines(again)]
    assert sum(map(bool, flagged)) == round(told["textual"]["detection_rate"] * 3)
    assert not any(flagged[0:6:2]), "no safe row is flagged at a false-alarm rate of 0"
    assert flagged[6] is None


@pytest.mark.parametrize(
    ("args", "says"),
    [
        pytest.param([], "nothing to judge", id="nothing"),
        pytest.param(["--text", "x"], "give --model", id="no model"),
        pytest.param(["--video", "a.mp4", "--dir", "."], "--video and --dir: give one of them", id="two sources"),
        pytest.param(["--dir", "gone", "--model", "m"], "gone: no such folder", id="no folder"),
        pytest.param(["--jsonl", "gone.jsonl", "--model", "m"], "gone.jsonl: cannot be read", id="no file"),
        pytest.param(["--text", "x", "--model", "org/model"], "pin it with --revision <commit>", id="remote code unpinned"),
        pytest.param(["--text", "x", "--model", "."], ".: no model that can be loaded", id="no model there"),
        pytest.param(["--text", "x", "--model", ".", "--fps", "-1"], "fps must be above 0", id="no such rate"),
        pytest.param(["--text", "x", "--model", ".", "--calibration", "gone.json"], "gone.json: cannot be read", id="no calibration"),
        pytest.param(["timeline", "--video", "a.mp4", "--model", ".", "--plot", "a.txt"], "a.txt: name a .png", id="no picture"),
        pytest.param(["--text", "x", "--model", ".", "--out", "gone/a.jsonl"], "a.jsonl: there is no folder gone", id="no folder for rows"),
        pytest.param(["--text", "x", "--model", ".", "--out", "."], ".: a folder; name a file in it", id="a folder for rows"),
        pytest.param(
            ["timeline", "--video", "a.mp4", "--model", ".", "--plot", "gone/a.png"],
            "there is no folder gone",
            id="no folder for plot",
        ),
        pytest.param(
            ["timeline", "--video", "a.mp4", "--model", ".", "--out", "gone/a.json"],
            "there is no folder gone",
            id="no folder for it",
        ),
        pytest.param(["calibrate", "--labels", "gone.jsonl", "--out", "gone/c.json"], "there is no folder gone", id="no place for it"),
        pytest.param(["--text", "x", "--model", ".", "--out", "/dev/no/such"], "there is no folder /dev/no", id="no such device"),
    ],
)
def test_wrong_uses_are_one_line(args: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("videosafety: ")
    assert says in line


def test_a_model_without_heads_is_refused(tmp_path: Path) -> None:
    plain = build_tiny(tmp_path / "plain", alarm=False)
    with pytest.raises(ValueError, match=r"VideoLlama3ForConditionalGeneration has no alarm heads: .*videosafety build-alarm"):
        Guard.load(str(plain), device="cpu")
