"""Tests of training_recipes/data.py and schema.py: every hostile row is an error with its file and row, and labels keep their meaning."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from videosafety.training_recipes import data, schema
from videosafety.training_recipes.data import DataError, load, missing_media, prompt_messages, require_media, row_problems, save, validate
from videosafety.training_recipes.schema import CURRENT, LEGACY, STAGES, new_row, tagged_labels, to_current

TAGS = "<vidType>{}</vidType><textType>{}</textType>"


def row(**values: Any) -> schema.Row:
    """A sound SFT row, changed."""
    sound = {"id": "a", "source": "test", "prompt": "What is this?", "completion": "A cat.", "label_version": CURRENT}
    return new_row(**sound | {"videos": ["a.mp4"], "visual_label": 0, "textual_label": 0} | values)


def for_stage(stage: str, **values: Any) -> schema.Row:
    target: dict[str, Any] = {
        "dpo": {"chosen": "No.", "rejected": "Yes.", "completion": None},
        "grpo": {"reference": "No.", "problem_type": schema.SAFETY_TYPE, "completion": None},
    }.get(stage, {})
    return row(**target | values)


HOSTILE = {
    "a key with a typo": ({"visual_lable": 1}, "'visual_lable' is no key"),
    "no prompt": ({"prompt": None}, "prompt is missing"),
    "no id": ({"id": None}, "id is missing"),
    "an empty prompt": ({"prompt": " \n"}, "prompt is empty"),
    "an empty completion": ({"completion": ""}, "completion is empty"),
    "a number for a text": ({"completion": 3}, "completion must be text"),
    "a label in words": ({"visual_label": "harmful"}, "visual_label must be 0, 1 or null"),
    "a label that is true": ({"textual_label": True}, "textual_label must be 0, 1 or null"),
    "a label that is a float": ({"textual_label": 1.0}, "textual_label must be 0, 1 or null"),
    "a label of 2": ({"visual_label": 2}, "visual_label must be 0 (safe), 1 (harmful) or null, got 2"),
    "a label of -100": ({"visual_label": -100}, "got -100"),
    "legacy polarity": ({"label_version": LEGACY}, "label_version must be"),
    "an unknown polarity": ({"label_version": "2"}, "label_version must be"),
    "no target": ({"completion": None}, "must have one target"),
    "two targets": ({"reference": "A cat."}, "must have one target"),
    "chosen alone": ({"completion": None, "chosen": "No."}, "must have one target"),
    "chosen is rejected": ({"completion": None, "chosen": "No.", "rejected": "No."}, "are the same text"),
    "a video as text": ({"videos": "a.mp4"}, "videos must be a list"),
    "an empty path": ({"videos": [""]}, "which is no path"),
    "a number for a path": ({"images": [3]}, "which is no path"),
    "an absolute path": ({"videos": ["/etc/passwd"]}, "does not lie below the data root"),
    "a path upwards": ({"videos": ["b/../../a.mp4"]}, "does not lie below the data root"),
    "a home path": ({"videos": ["~/a.mp4"]}, "does not lie below the data root"),
    "a NUL in a path": ({"videos": ["a\0.mp4"]}, "does not lie below the data root"),
    "more placeholders than videos": ({"prompt": "<video><video>Compare."}, "hold 2 <video>, but videos has 1 path(s)"),
    "fewer placeholders than videos": ({"prompt": "<video>Compare.", "videos": ["a.mp4", "b.mp4"]}, "hold 1 <video>"),
    "a placeholder without its image": ({"prompt": "<image>\nWhat?"}, "hold 1 <image>, but images has 0"),
    "a placeholder in the answer": ({"completion": "See <video>."}, "completion holds <video>"),
    "an alarm token in the prompt": ({"prompt": "<|textual_alarm|> hi"}, "prompt holds an alarm token"),
    "a numbered alarm token": ({"completion": "<|visual_alarm_2|>"}, "completion holds an alarm token"),
    "half a surrogate pair": ({"prompt": "\ud83d"}, "half a surrogate pair"),
    "harmful visuals unseen": ({"videos": [], "visual_label": 1}, "has no video and no image"),
    "tags against the label": ({"completion": "A." + TAGS.format(1, 0)}, "visual_label is 0, but completion says 1 in its <vidType>"),
    "tags without a label": ({"completion": "A." + TAGS.format("harmful", 0)}, "must hold <vidType>0</vidType>"),
    "one tag of two": ({"completion": "A.<vidType>0</vidType>"}, "must hold <textType>0</textType>"),
    "a tag twice": ({"completion": TAGS.format(0, 0) + TAGS.format(0, 0)}, "once"),
    "a tag left open": ({"completion": "A.<vidType>0" + TAGS.format(0, 0)}, "once"),
    "a stray opening tag": ({"completion": TAGS.format(0, 0) + "<vidType>"}, "once"),
    "a stray closing tag": ({"completion": "</textType>" + TAGS.format(0, 0)}, "once"),
    "tags in the reference": ({"completion": None, "reference": "<answer>A.</answer>"}, "reference holds tags"),
    "an unknown problem type": ({"completion": None, "reference": "A.", "problem_type": "riddle"}, "problem_type must be one of"),
    "a reference that is no number": ({"completion": None, "reference": "many", "problem_type": "numerical"}, "cannot be read as"),
    "history that is text": ({"history": "hello"}, "history must be a list"),
    "history that ends with the user": ({"history": [{"role": "user", "content": "Hi"}]}, "ends with a user turn"),
    "history that begins with a system": ({"history": [{"role": "system", "content": "Hi"}] * 2}, "is by 'system'"),
    "a turn without content": ({"history": [{"role": "user"}, {"role": "assistant"}]}, "turn 1 must be"),
}


@pytest.mark.parametrize(("values", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_row_is_refused_with_the_reason(values: dict[str, Any], said: str) -> None:
    assert said in "\n".join(row_problems(row(**values)))


@pytest.mark.parametrize("stage", STAGES)
def test_a_sound_row_passes_its_stage_and_no_other_target(stage: str) -> None:
    validate([for_stage(stage)], stage)
    for other in STAGES:
        if STAGES[other] != STAGES[stage]:
            with pytest.raises(DataError, match=f"which {other} trains on"):
                validate([for_stage(stage)], other)


@pytest.mark.parametrize(
    ("stage", "problem", "needed"),
    [("sft", None, False), ("dpo", None, False), ("at_sft", None, True), ("grpo", schema.SAFETY_TYPE, True), ("grpo", "free-form", False)],
)
@pytest.mark.parametrize("label", ["visual_label", "textual_label"])
def test_labels_are_needed_where_they_are_trained_on(stage: str, problem: str | None, needed: bool, label: str) -> None:
    unlabelled = for_stage(stage, problem_type=problem, **{label: None})
    if not needed:
        validate([unlabelled], stage)
        return
    with pytest.raises(DataError, match=rf"{label} is missing; {stage} needs it.*label the row or leave it out"):
        validate([unlabelled], stage)


def test_a_problem_type_is_needed_by_grpo() -> None:
    with pytest.raises(DataError, match="problem_type is missing"):
        validate([for_stage("grpo", problem_type=None)], "grpo")


def test_an_unknown_stage_and_no_rows() -> None:
    with pytest.raises(ValueError, match="stage must be one of sft, at_sft, dpo, grpo"):
        validate([row()], "ppo")
    with pytest.raises(DataError, match="no rows"):
        validate([], "sft")


CONTRADICTIONS = {
    "one id": ({}, {"id": "a", "videos": ["b.mp4"], "prompt": "?"}, "the id 'a' is that of row 1"),
    "one video": ({}, {"visual_label": 1, "prompt": "Other?"}, "visual_label is 1, but 0 in row 1 (test, id a) for the same 'a.mp4'"),
    "one video, spelt otherwise": ({}, {"visual_label": 1, "videos": ["./x/../a.mp4"]}, "visual_label is 1, but 0"),
    "one prompt": ({}, {"textual_label": 1, "videos": ["b.mp4"]}, "textual_label is 1, but 0 in row 1"),
    "one prompt, otherwise spaced": ({}, {"textual_label": 1, "prompt": "<video>\n What  is this?"}, "textual_label is 1, but 0"),
    "one prompt in another Unicode form": ({"prompt": "caf\u00e9?"}, {"prompt": "cafe\u0301?", "textual_label": 1}, "textual_label is 1"),
}


@pytest.mark.parametrize(("first", "second", "said"), CONTRADICTIONS.values(), ids=CONTRADICTIONS)
def test_contradictions_between_rows(first: dict[str, Any], second: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        validate([row(**first), row(**{"id": "b"} | second)])
    assert said in str(error.value)
    assert "1 problem(s)" in str(error.value)


@pytest.mark.parametrize(
    "second",
    [
        {"visual_label": None},
        {"textual_label": None},
        {"videos": ["b.mp4"], "visual_label": 1},
        {"prompt": "Another?", "textual_label": 1},
        {"videos": [], "images": ["a.png"], "visual_label": 1},
        {"history": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hi"}], "textual_label": 1},
    ],
)
def test_what_does_not_contradict(second: dict[str, Any]) -> None:
    validate([row(), row(id="b", **second)])


def test_a_rejected_answer_may_label_wrongly_and_a_chosen_one_may_not() -> None:
    right, wrong = "No." + TAGS.format(0, 0), "No." + TAGS.format(1, 1)
    validate([for_stage("dpo", chosen=right, rejected=wrong)], "dpo")
    with pytest.raises(DataError, match="but chosen says 1"):
        validate([for_stage("dpo", chosen=wrong, rejected=right)], "dpo")


def test_text_only_rows_share_no_media() -> None:
    validate([row(videos=[]), row(id="b", prompt="Other?", videos=[])], "at_sft")


def lines(file: Path, *values: Any) -> Path:
    file.write_text("".join(f"{value if isinstance(value, str) else json.dumps(value)}\n" for value in values))
    return file


SOUND = {"prompt": "What?", "completion": "A cat.", "visual_label": 0, "textual_label": 0, "label_version": "1", "videos": ["a.mp4"]}


def test_all_problems_of_all_files_come_at_once_with_file_and_row(tmp_path: Path) -> None:
    one = lines(
        tmp_path / "one.jsonl", SOUND, "{", "", SOUND | {"prompt": ""}, '{"prompt": "a", "visual_label": 0, "visual_label": 1}', "[]"
    )
    two = lines(tmp_path / "two.jsonl", SOUND | {"visual_label": 1}, {"prompt": "x", "completion": "y", "textual_label": 1})
    (tmp_path / "three.jsonl").write_bytes(b'{"prompt": "\xff"}\n')
    with pytest.raises(DataError) as error:
        load([one, two, tmp_path / "three.jsonl", tmp_path / "four.jsonl"], "at_sft", tmp_path)
    said = str(error.value)
    for expected in (
        "8 problem(s)",
        f"{one}, row 2: Expecting",
        f"{one}, row 4: prompt is empty",  # the empty line counts, so that editors show the same number
        f"{one}, row 5: the key 'visual_label' is there twice",
        f"{one}, row 6: must be a JSON object",
        f"{two}, row 1: visual_label is 1, but 0 in {one}, row 1 for the same 'a.mp4'",
        f"{two}, row 2: label_version is missing",
        f"{tmp_path / 'three.jsonl'}, row 1: 'utf-8' codec",
        f"{tmp_path / 'four.jsonl'}: no such file",
    ):
        assert expected in said


TAGGED = "Yes." + TAGS.format(1, 0)
UNVERSIONED: dict[str, dict[str, Any]] = {
    "a label": {"visual_label": 0},
    "tags of the answer": {"completion": TAGGED},
    "tags of an earlier answer": {"history": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": TAGGED}]},
}


@pytest.mark.parametrize("values", UNVERSIONED.values(), ids=UNVERSIONED)
def test_labels_without_a_version_are_refused_wherever_they_stand(tmp_path: Path, values: dict[str, Any]) -> None:
    file = lines(tmp_path / "rows.jsonl", {"prompt": "What?", "completion": "A cat.", **values})
    with pytest.raises(DataError, match="row 1: label_version is missing"):
        load([file], "sft", tmp_path)


def test_a_user_turn_that_names_a_tag_is_no_label(tmp_path: Path) -> None:
    history = [{"role": "user", "content": "Write <vidType>."}, {"role": "assistant", "content": "No."}]
    assert load([lines(tmp_path / "rows.jsonl", {"prompt": "Why?", "completion": "A cat.", "history": history})], "sft", tmp_path)


def test_no_more_than_twenty_problems_are_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        load([lines(tmp_path / "a.jsonl", *[{"prompt": ""}] * 27)], "sft", tmp_path)
    said = str(error.value).splitlines()
    assert said[0].endswith("54 problem(s) in the training data")  # no prompt and no target, each
    assert len(said) == 1 + data.MAX_LINES + 1
    assert said[-1].strip() == "… and 34 more"


def test_a_minimal_row_gets_id_and_source_from_its_place(tmp_path: Path) -> None:
    file = lines(tmp_path / "mine.jsonl", {"prompt": "What?", "completion": "A cat."})
    (found,) = load([file], "sft", tmp_path)
    assert found == new_row(id="mine-1", source="mine", prompt="What?", completion="A cat.", label_version=CURRENT)


def test_rows_come_back_as_they_were_saved(tmp_path: Path) -> None:
    rows = [
        row(prompt="猫\u2028?", language="zh", videos=[]),
        row(id="b", history=[{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}], images=["i.png"], videos=[]),
    ]
    (tmp_path / "i.png").write_bytes(b"x")
    save(rows, tmp_path / "new" / "rows.jsonl")
    assert load([tmp_path / "new" / "rows.jsonl"], "sft", tmp_path) == rows
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["rows.jsonl"]


def test_bad_rows_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prompt is empty"):
        save([row(prompt="")], tmp_path / "rows.jsonl")
    assert not list(tmp_path.iterdir())


def test_missing_media_are_reported_at_once_with_the_first_ten(tmp_path: Path) -> None:
    rows = [row(id=f"{n}", videos=[f"{n:02}.mp4"]) for n in range(14)]
    (tmp_path / "00.mp4").write_bytes(b"x")
    (tmp_path / "01.mp4").touch()  # empty
    (tmp_path / "02.mp4").mkdir()
    with pytest.raises(DataError) as error:
        require_media([*rows, row(id="again", videos=["13.mp4"], images=["i.png"])], tmp_path)
    said = str(error.value).splitlines()
    assert said[0].startswith("videosafety: 14 of 15 videos and images are missing or empty below")
    assert [line.strip() for line in said[1:]] == [*(f"{n:02}.mp4" for n in range(1, 11)), "… and 4 more"]
    assert missing_media(rows[:1], tmp_path) == []


def test_load_refuses_missing_media(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 1 videos and images are missing"):
        load([lines(tmp_path / "a.jsonl", SOUND)], "at_sft", tmp_path)


def test_a_legacy_file_is_read_in_the_new_polarity(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").write_bytes(b"x")
    old = SOUND | {"label_version": "0", "visual_label": 0, "textual_label": 1, "completion": "No." + TAGS.format(0, 1)}
    (found,) = load([lines(tmp_path / "a.jsonl", old)], "at_sft", tmp_path)
    assert (found["visual_label"], found["textual_label"], found["label_version"]) == (1, 0, CURRENT)
    assert found["completion"] == "No." + TAGS.format(1, 0)


LABEL = st.sampled_from([0, 1, None])


@given(LABEL, LABEL, st.tuples(st.sampled_from([0, 1]), st.sampled_from([0, 1])), st.booleans(), st.sampled_from([CURRENT, LEGACY]))
def test_the_converter_is_idempotent(visual: int | None, textual: int | None, tags: tuple[int, int], tagged: bool, version: str) -> None:
    """Defect #31: the authors' converter flips at every run."""
    text = "A." + (TAGS.format(*tags) if tagged else "")
    old = row(visual_label=visual, textual_label=textual, label_version=version, completion=text)
    once = to_current(old)
    assert to_current(once) == once
    assert once["label_version"] == CURRENT
    turn = {None: None, 0: 1, 1: 0} if version == LEGACY else {None: None, 0: 0, 1: 1}
    assert (once["visual_label"], once["textual_label"]) == (turn[visual], turn[textual])
    expected = {"visual_label": turn[tags[0]], "textual_label": turn[tags[1]]} if tagged else None
    assert once["completion"] is not None
    assert tagged_labels(once["completion"]) == expected
    assert {**once, "visual_label": visual, "textual_label": textual, "completion": text, "label_version": version} == old  # nothing else


def test_the_converter_turns_all_answers_and_leaves_its_argument() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": TAGS.format(0, 0)}]
    old = row(label_version=LEGACY, completion=None, chosen="No." + TAGS.format(0, 0), rejected="Yes." + TAGS.format(1, 1), history=turns)
    new = to_current(old)
    assert (new["chosen"], new["rejected"]) == ("No." + TAGS.format(1, 1), "Yes." + TAGS.format(0, 0))
    assert new["history"][1]["content"] == TAGS.format(1, 1)
    assert old["history"][1]["content"] == TAGS.format(0, 0)
    assert old["visual_label"] == 0


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"label_version": "x"}, "label_version must be"),
        ({"label_version": LEGACY, "prompt": "Write <vidType>0</vidType> if it is harmful."}, "convert this row by hand"),
        ({"label_version": LEGACY, "completion": "A." + TAGS.format("safe", 0)}, "must hold <vidType>0</vidType>"),
    ],
)
def test_what_cannot_be_converted(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        to_current(row(**values))


V, PICTURE = {"type": "video", "video": "a.mp4"}, {"type": "image", "image": "i.png"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


PLACED = {
    "no placeholder: media first": ("What?", ["a.mp4"], [], [V, text("What?")]),
    "at the start": ("<video>\nWhat?", ["a.mp4"], [], [V, text("What?")]),
    "at the end": ("What?\n<video>", ["a.mp4"], [], [text("What?"), V]),
    "in between": ("Before <image> after", [], ["i.png"], [text("Before"), PICTURE, text("after")]),
    "two in order": ("<video> or <video>?", ["a.mp4", "b.mp4"], [], [V, text("or"), {**V, "video": "b.mp4"}, text("?")]),
    "one kind placed, one not": ("What <image>?", ["a.mp4"], ["i.png"], [V, text("What"), PICTURE, text("?")]),
    "no media": (" What? ", [], [], [text("What?")]),
}


@pytest.mark.parametrize(("prompt", "videos", "images", "blocks"), PLACED.values(), ids=PLACED)
def test_media_stand_where_the_placeholders_are(prompt: str, videos: list[str], images: list[str], blocks: list[Any]) -> None:
    assert prompt_messages(row(prompt=prompt, videos=videos, images=images)) == [{"role": "user", "content": blocks}]


def test_media_stand_in_the_first_user_turn_of_several() -> None:
    history = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello "}]
    assert prompt_messages(row(history=history)) == [
        {"role": "user", "content": [V, text("Hi")]},
        {"role": "assistant", "content": " Hello "},
        {"role": "user", "content": [text("What is this?")]},
    ]
