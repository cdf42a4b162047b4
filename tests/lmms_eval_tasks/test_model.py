"""The model wrapper: batches equal single rows, failures mark one row, short memory shrinks the batch, nothing is asked twice."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from lmms_eval.api.instance import Instance
from PIL import Image

from conftest import write_video
from videosafety.hf_models.guard import Guard, Row
from videosafety.hf_models.tiny import build_tiny
from videosafety.lmms_eval_tasks import run
from videosafety.lmms_eval_tasks.judge.text import split_thinking
from videosafety.lmms_eval_tasks.model import VideoSafetyR1

Rows = list[dict[str, Any]]


def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
    media = [{"type": kind, "url": row[kind]} for kind in ("video", "image") if kind in row]
    return [{"role": "user", "content": [*media, {"type": "text", "text": row["query"]}]}]


def ask(model: VideoSafetyR1, rows: Rows, **generation: Any) -> list[str]:
    model.task_dict = {"t": {"test": rows}}
    settings = {"until": [], "max_new_tokens": 8, "do_sample": False, "temperature": 0.0, **generation}
    requests = [
        Instance("generate_until", ("", messages, dict(settings), i, "t", "test"), 0, {"task": "t", "doc_id": i, "repeats": 1})
        for i in range(len(rows))
    ]
    before = [dict(request.args[2]) for request in requests]
    texts = [answer.text for answer in model.generate_until(requests)]
    assert [request.args[2] for request in requests] == before, "lmms-eval hashes its own generation settings: they must not change"
    return texts


@pytest.fixture
def load(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., VideoSafetyR1]:
    monkeypatch.setenv("VIDEOSAFETY_CACHE_DIR", str(tmp_path / "cache"))

    def make(**arguments: Any) -> VideoSafetyR1:
        return VideoSafetyR1(**{"pretrained": str(tiny), "device": "cpu", **arguments})

    return make


@pytest.fixture
def rows(tmp_path: Path) -> Rows:
    a = write_video(tmp_path / "a.mp4", frames=40, size=(112, 84))
    b = write_video(tmp_path / "b.mp4", frames=24, size=(56, 56))
    image = tmp_path / "image.png"
    Image.new("RGB", (60, 40), "red").save(image)
    return [
        {"query": "What happens?", "video": str(a)},
        {"query": "How long is the street, and who walks along it?", "video": str(b)},
        {"query": "Only text."},
        {"query": "What is on the card?", "image": str(image)},
        {"query": "Again, what happens in this one?", "video": str(a)},
        {"query": "Some other text, a little longer than the one before."},
    ]


def test_batches_equal_single_rows(load: Callable[..., VideoSafetyR1], rows: Rows) -> None:
    single = ask(load(batch_size=1, resume=False), rows)
    assert all(single)
    assert len(set(single)) == len(single), "the answers must depend on the prompts for this test to mean anything"
    assert ask(load(batch_size=4, resume=False), rows) == single


def test_the_video_reaches_the_model(load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = load(), []
    original = model._model.generate
    monkeypatch.setattr(model._model, "generate", lambda **inputs: (seen.append(inputs), original(**inputs))[1])
    ask(model, rows[:1])
    ask(model, rows[2:4])
    assert seen[0]["pixel_values_videos"].numel() > 0
    assert ["pixel_values" in inputs for inputs in seen[1:]].count(True) == 1
    assert all("pixel_values_videos" not in inputs for inputs in seen[1:])


def test_a_frame_more_is_a_longer_prompt_and_a_pixel_budget_a_shorter_one(load: Callable[..., VideoSafetyR1], rows: Rows) -> None:
    def frames(**arguments: Any) -> int:
        return len(load(**arguments).frames.get(rows[0]["video"]).frames)

    assert frames(fps=1) == 5
    assert frames(fps=2) == 10
    assert frames(fps=2, max_frames=3) == 3
    small = load(max_pixels=1600).frames.get(rows[0]["video"]).frames
    assert small.shape[1] * small.shape[2] <= 1600


def test_what_was_asked_for_is_recorded(load: Callable[..., VideoSafetyR1]) -> None:
    load(fps=2, max_frames=7, max_pixels=5000)
    noted = run.SETTINGS["model"]
    assert (noted["fps"], noted["max_frames"], noted["max_pixels"]) == (2.0, 7, 5000)
    assert noted["note"].startswith("random weights")
    json.dumps(noted)


def test_bad_media_mark_their_row_only(load: Callable[..., VideoSafetyR1], rows: Rows, tmp_path: Path) -> None:
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    answers = ask(load(batch_size=8), [rows[0], {"query": "?", "video": str(text)}, {"query": "?", "image": str(text)}, rows[2]])
    assert answers[1].startswith("[VIDEOSAFETY_UNSCORED media_error] ")
    assert answers[2].startswith("[VIDEOSAFETY_UNSCORED media_error] ")
    assert not answers[0].startswith("[")
    assert not answers[3].startswith("[")


class TestJournal:
    def test_a_second_run_generates_nothing(self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch) -> None:
        first = ask(load(batch_size=3), rows)
        model = load(batch_size=3)
        monkeypatch.setattr(model._model, "generate", lambda **_: pytest.fail("asked again"))
        assert ask(model, rows) == first

    @pytest.mark.parametrize(
        "change",
        [{"query": "Another question?"}, {"video": "new"}, {"generation": {"max_new_tokens": 5}}, {"arguments": {"fps": 2}}],
        ids=["the query", "the video under the same path", "the generation settings", "the frames"],
    )
    def test_whatever_changes_the_answer_is_asked_anew(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, change: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ask(load(), rows[:1])
        row = dict(rows[0])
        if "video" in change:
            write_video(Path(row["video"]), frames=9)
        row["query"] = change.get("query", row["query"])
        model, calls = load(**change.get("arguments", {})), []
        original = model._model.generate
        monkeypatch.setattr(model._model, "generate", lambda **inputs: (calls.append(1), original(**inputs))[1])
        ask(model, [row], **change.get("generation", {}))
        assert calls == [1]

    def test_failures_are_asked_again(self, load: Callable[..., VideoSafetyR1], tmp_path: Path) -> None:
        late = tmp_path / "late.mp4"
        assert ask(load(), [{"query": "?", "video": str(late)}])[0].startswith("[VIDEOSAFETY_UNSCORED media_error]")
        write_video(late)
        assert not ask(load(), [{"query": "?", "video": str(late)}])[0].startswith("[")

    def test_a_torn_last_line_costs_only_itself(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = load()
        first = ask(model, rows)
        text = model.journal.file.read_text(encoding="utf-8")
        model.journal.file.write_text(text[:-20], encoding="utf-8")
        model, calls = load(), []
        original = model._model.generate
        monkeypatch.setattr(model._model, "generate", lambda **inputs: (calls.append(1), original(**inputs))[1])
        assert ask(model, rows) == first
        assert calls == [1]

    def test_other_versions_answer_anew(self, load: Callable[..., VideoSafetyR1], monkeypatch: pytest.MonkeyPatch) -> None:
        before = load().journal.file.parent
        with monkeypatch.context() as patch:
            patch.setattr(av, "__version__", "0.0")
            assert load().journal.file.parent != before
        version = importlib.metadata.version
        monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0" if name == "videosafety" else version(name))
        assert load().journal.file.parent != before

    def test_k_samples_of_one_prompt_are_k_requests(self, load: Callable[..., VideoSafetyR1], rows: Rows) -> None:
        torch.manual_seed(3)
        answers = ask(load(batch_size=4), [rows[2]] * 4, do_sample=True, temperature=1.5)
        assert len(set(answers)) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_frame": 3}, r"max_frame \(did you mean max_frames\?\)"),
        ({"pretrained": ""}, "needs --model_args pretrained"),
        ({"pretrained": "org/model", "trust_remote_code": True}, "pin it with revision"),
        ({"batch_size": "auto"}, "whole number"),
        ({"batch_size": 0}, "whole number"),
        ({"video_backend": "opencv"}, "choose one of pyav"),
        ({"fps": -1}, "fps must be above 0"),
    ],
)
def test_wrong_arguments_say_what_is_right(load: Callable[..., VideoSafetyR1], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(**arguments)


def test_stop_strings_cut_the_answer(load: Callable[..., VideoSafetyR1], rows: Rows) -> None:
    whole = ask(load(), rows[2:3])[0]
    stop = whole[len(whole) // 2 :][:3]
    assert ask(load(), rows[2:3], until=[stop])[0] == whole.split(stop)[0]


class TestAlarm:
    """An alarm model's probabilities go with each answer, into the journal and out of it."""

    @pytest.fixture(scope="class")
    def alarm(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return build_tiny(tmp_path_factory.mktemp("models") / "alarm")

    @pytest.fixture
    def load_alarm(self, load: Callable[..., VideoSafetyR1], alarm: Path) -> Callable[..., VideoSafetyR1]:
        return lambda **arguments: load(**{"pretrained": str(alarm), "trust_remote_code": True, **arguments})

    def test_each_answer_knows_what_the_guard_says_of_its_prompt(self, load_alarm: Callable[..., VideoSafetyR1], rows: Rows) -> None:
        model = load_alarm(batch_size=4)
        found = ask(model, rows)
        guard = Guard(model._model, model.processor)
        asked = [
            Row(str(i), r["query"], video=Path(r["video"]) if "video" in r else None, image=Path(r["image"]) if "image" in r else None)
            for i, r in enumerate(rows)
        ]
        for answer, wanted in zip(found, guard.judge(asked), strict=True):
            assert answer.task == "t"
            for name in ("visual", "textual"):
                assert answer.alarm[name] == pytest.approx(wanted[f"p_{name}"], abs=2e-5)
            assert answer.alarm.get("missing") == wanted.get("missing")
            assert answer.alarm["flagged"] is wanted["flagged"]
        assert found[2].alarm["missing"] == {"visual": "nothing is shown"}

    def test_the_journal_gives_them_back_and_another_calibration_flags_anew(
        self, load_alarm: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        first = ask(load_alarm(batch_size=3), rows)
        strict = {"version": 2} | {name: {"threshold": 0.0} for name in ("visual", "textual")}
        (tmp_path / "strict.json").write_text(json.dumps(strict))
        model = load_alarm(calibration=str(tmp_path / "strict.json"))
        monkeypatch.setattr(model._model, "generate", lambda **_: pytest.fail("asked again"))
        again = ask(model, rows)
        assert again == first
        assert [{**a.alarm, "flagged": 0} for a in again] == [{**a.alarm, "flagged": 0} for a in first]
        assert all(a.alarm["flagged"] for a in again)
        assert not all(a.alarm["flagged"] for a in first)

    def test_a_failed_row_has_no_probabilities(self, load_alarm: Callable[..., VideoSafetyR1], tmp_path: Path, rows: Rows) -> None:
        found = ask(load_alarm(batch_size=2), [rows[0], {"query": "?", "video": str(tmp_path / "gone.mp4")}])
        assert found[0].alarm is not None
        assert (found[1].alarm, found[1].task) == (None, "t")

    def test_a_plain_model_has_none(self, load: Callable[..., VideoSafetyR1], rows: Rows) -> None:
        assert [(a.alarm, a.task) for a in ask(load(), rows[:1])] == [(None, "t")]
        assert run.SETTINGS["model"]["calibration"] is None


class TestProcessorRefuses:
    @pytest.mark.parametrize("batch_size", [1, 4])
    def test_one_row_is_marked_with_what_the_processor_said(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch, batch_size: int
    ) -> None:
        wanted = ask(load(resume=False), rows)
        model = load(batch_size=batch_size, resume=False)
        processor = type(model.processor)
        original = processor.__call__

        def fussy(self: Any, *args: Any, **kwargs: Any) -> Any:
            if any("long is the street" in text or "Only text" in text for text in kwargs["text"]):
                raise ValueError("t:1 must be larger\nthan temporal_factor:2")
            return original(self, *args, **kwargs)

        monkeypatch.setattr(processor, "__call__", fussy)
        found = ask(model, rows)
        said = "the processor refused it: t:1 must be larger than temporal_factor:2"
        assert found[1] == f"[VIDEOSAFETY_UNSCORED media_error] {said}"
        assert found[2] == f"[VIDEOSAFETY_UNSCORED generation_failed] {said}"
        assert [found[i] for i in (0, 3, 4, 5)] == [wanted[i] for i in (0, 3, 4, 5)]

    @pytest.mark.parametrize("most", [1, 2])
    def test_rows_that_cannot_share_a_batch_part_ways(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        wanted = ask(load(resume=False), rows)
        model = load(batch_size=4, resume=False)
        processor = type(model.processor)
        original = processor.__call__

        def few(self: Any, *args: Any, **kwargs: Any) -> Any:
            if len(kwargs["text"]) > most:
                raise ValueError("Unable to convert output")
            return original(self, *args, **kwargs)

        monkeypatch.setattr(processor, "__call__", few)
        assert ask(model, rows) == wanted

    @pytest.mark.parametrize("family", ["llava_onevision", "internvl", "smolvlm"])
    def test_clips_of_unlike_length_are_answered_as_they_are_alone(
        self, load: Callable[..., VideoSafetyR1], rows: Rows, tmp_path: Path, family: str
    ) -> None:
        """The first two processors stack the clips of a batch, the third tells all prompts of a batch the longest one's length."""
        model = str(build_tiny(tmp_path / family, family=family, alarm=False))
        asked = [rows[0], rows[1], rows[4]]
        single = ask(load(pretrained=model, resume=False), asked)
        assert not [answer for answer in single if answer.startswith("[")]
        assert ask(load(pretrained=model, resume=False, batch_size=4), asked) == single

    def test_one_frame_fills_a_temporal_patch(self, tmp_path: Path, load: Callable[..., VideoSafetyR1]) -> None:
        """Qwen3-VL's processor refuses a video of one frame."""
        one = write_video(tmp_path / "one.mp4", frames=1, size=(64, 64))
        qwen = build_tiny(tmp_path / "qwen", family="qwen3_vl", alarm=False)
        (answer,) = ask(load(pretrained=str(qwen)), [{"query": "What is this?", "video": str(one)}])
        assert answer
        assert not answer.startswith("[")


def test_only_pixels_take_the_type_of_the_weights(
    load: Callable[..., VideoSafetyR1], rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Qwen2.5-VL computes positions from second_per_grid_ts, which bfloat16 would round."""
    qwen = build_tiny(tmp_path / "qwen", family="qwen2_5_vl", alarm=False)
    model, seen = load(pretrained=str(qwen), dtype="bfloat16", fps=0.9), []
    original = model._model.generate
    monkeypatch.setattr(model._model, "generate", lambda **inputs: (seen.append(inputs), original(**inputs))[1])
    ask(model, rows[:1])
    assert seen[0]["pixel_values_videos"].dtype == torch.bfloat16
    assert seen[0]["second_per_grid_ts"].dtype == torch.float32


def test_an_answer_cut_at_the_token_limit_is_recorded(
    load: Callable[..., VideoSafetyR1], rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(batch_size=2)
    end, pad, word = model.tokenizer.eos_token_id, model.tokenizer.pad_token_id, model.tokenizer("word")["input_ids"][0]
    made = torch.tensor([[word, word, word, end], [word, word, word, word]])
    monkeypatch.setattr(model._model, "generate", lambda **inputs: torch.cat([inputs["input_ids"], made], dim=1))
    ask(model, [rows[2], rows[5]], max_new_tokens=4)
    assert [entry.get("cut", False) for entry in model.journal.answers.values()] == [False, True]
    model.journal.answers.clear()
    ask(model, [rows[2], rows[5]], max_new_tokens=4, until=[model.tokenizer.decode([word])])
    assert not any(entry.get("cut") for entry in model.journal.answers.values()), "a stop string ends an answer"
    model.journal.answers.clear()
    made[1] = torch.tensor([word, end, pad, pad])
    ask(model, [rows[2], rows[5]], max_new_tokens=4)
    assert not any(entry.get("cut") for entry in model.journal.answers.values())


@pytest.mark.parametrize(
    ("ending", "opened"),
    [("<think>\n", "<think>\n"), ("<think>", "<think>"), ("<THINKING>", ""), ("<think>\n\n</think>\n\n", ""), ("", "")],
    ids=["R1", "no line break", "no tag of ours", "thinking switched off", "plain"],
)
def test_a_thinking_tag_that_the_template_wrote_is_put_back(
    load: Callable[..., VideoSafetyR1], rows: Rows, ending: str, opened: str
) -> None:
    model = load(batch_size=4, resume=False)
    model.processor.chat_template = (
        model.processor.chat_template + "{%- if add_generation_prompt -%}" + ending.replace("\n", "{{ '\\n' }}") + "{%- endif -%}"
    )
    for answer in ask(model, rows):
        assert answer.startswith(opened)
        assert "think" not in answer.removeprefix(opened)
        thinking, said = split_thinking(answer)
        assert bool(said) is not bool(opened), "thinking without an end is no answer"
        assert bool(thinking) is bool(opened)
