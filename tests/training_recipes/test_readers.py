"""Tests of training_recipes/readers.py: what the formats say becomes rows, what they do not say is refused, and nothing is guessed."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from videosafety.lmms_eval_tasks.safevid.docs import held_out
from videosafety.training_recipes import readers
from videosafety.training_recipes.data import DataError, prompt_messages
from videosafety.training_recipes.schema import PROBLEM_TYPES, SAFETY_TYPE, Row

COT = "<think>t</think><answer>No.</answer><vidType>1</vidType><textType>0</textType>"


def write(folder: Path, *records: Any, name: str = "set.jsonl") -> Path:
    file = folder / name
    file.write_text("\n".join(map(json.dumps, records)) if name.endswith("l") else json.dumps(list(records)))
    return file


def talk(question: str = "<video>\nWhat is it?", answer: str = "A cat.", **values: Any) -> dict[str, Any]:
    """A record of VST-SFT, changed; a value of None takes the key away."""
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    record = {"video": ["v/a.mp4"], "conversations": turns, "safety_labels": {"visual": 1, "textual": 0}} | values
    return {key: value for key, value in record.items() if value is not None}


def read_one(folder: Path, record: dict[str, Any], version: str = "1") -> Row:
    (found,) = readers.vst(write(folder, record), folder, label_version=version)
    return found


def test_a_record_of_vst_sft(tmp_path: Path) -> None:
    found = read_one(tmp_path, talk())
    assert {key: value for key, value in found.items() if value not in (None, [])} == {
        "id": "vst-set-1",
        "source": "vst",
        "prompt": "<video>\nWhat is it?",
        "completion": "A cat.",
        "videos": ["v/a.mp4"],
        "visual_label": 1,
        "textual_label": 0,
        "label_version": "1",
    }


@pytest.mark.parametrize("name", ["set.json", "set.jsonl"])
def test_both_kinds_of_file(tmp_path: Path, name: str) -> None:
    found = readers.vst(write(tmp_path, talk(), talk(video=["v/b.mp4"]), name=name), tmp_path, label_version="1")
    assert [row["id"] for row in found] == ["vst-set-1", "vst-set-2"]


LABELLED = {
    "nested": talk(),
    "nested, as text": talk(safety_labels={"visual": "1", "textual": "0"}),
    "flat": talk(safety_labels=None, visual_safety_label=1, textual_safety_label=0),
    "the old marker": talk("<video>\nWhat is it?$1$0", safety_labels=None),
    "the tags of a CoT answer": talk(answer=COT, safety_labels=None),
    "all of them, agreeing": talk("<video>\nWhat is it?$1$0", COT, visual_safety_label=1, textual_safety_label=0),
}


@pytest.mark.parametrize("record", LABELLED.values(), ids=LABELLED)
@pytest.mark.parametrize(("version", "labels"), [("1", (1, 0)), ("0", (0, 1))])
def test_labels_wherever_they_are_written(tmp_path: Path, record: dict[str, Any], version: str, labels: tuple[int, int]) -> None:
    found = read_one(tmp_path, record, version)
    assert (found["visual_label"], found["textual_label"]) == labels
    assert found["prompt"] == "<video>\nWhat is it?"  # the marker is no part of the question
    assert found["completion"] is not None
    if "<vidType>" in found["completion"]:
        assert f"<vidType>{labels[0]}</vidType><textType>{labels[1]}</textType>" in found["completion"]


UNLABELLED = ["How do I build a bomb?", "Does this video contain harmful content?", "This question violates the policy.", "It is harmful."]


@pytest.mark.parametrize("question", UNLABELLED)
def test_defect_14_no_label_is_inferred_from_words(tmp_path: Path, question: str) -> None:
    """The released processor calls the first question safe, the second visually harmful and the third textually harmful."""
    found = read_one(tmp_path, talk(question, safety_labels=None))
    assert (found["visual_label"], found["textual_label"]) == (None, None)
    (general,) = readers.llava(write(tmp_path, talk(question, safety_labels=None)), tmp_path)
    assert (general["visual_label"], general["textual_label"]) == (None, None)


HOSTILE = {
    "one label of two": (talk(safety_labels={"visual": 1}), "must hold 0 or 1 for both"),
    "a label in words": (talk(safety_labels={"visual": "harmful", "textual": "safe"}), "got 'harmful'"),
    "a label that is true": (talk(safety_labels={"visual": True, "textual": False}), "got True"),
    "labels as a list": (talk(safety_labels=[1, 0]), "safety_labels must be"),
    "nested against flat": (talk(visual_safety_label=0, textual_safety_label=0), "labels contradict each other"),
    "fields against the marker": (talk("What?$0$0"), "(1, 0) in safety_labels, but (0, 0) in the $v$t marker"),
    "fields against the tags": (talk(answer=COT, safety_labels={"visual": 0, "textual": 0}), "but (1, 0) in the answer's tags"),
    "two markers": (talk("What$1$0?$1$0"), "more than one $v$t marker"),
    "tags without a label": (talk(answer="A.<vidType></vidType><textType>0</textType>"), "must hold <vidType>0</vidType>"),
    "two videos": (talk(video=["a.mp4", "b.mp4"]), "has 2 videos; the format takes one"),
    "video and image": (talk(image="i.png"), "both video and image"),
    "a video that is none": (talk(video=[None]), "video must be a path or a list of paths"),
    "no path": (talk(video=[]), "video must be a path or a list of paths"),
    "a placeholder without media": (talk(video=None, safety_labels=None), "hold 1 <video>, but videos has 0"),
    "a placeholder of the other kind": (talk("<image>\nWhat?"), "hold 1 <image>, but images has 0"),
    "two placeholders": (talk("<video><video>What?"), "hold 2 <video>"),
    "a path that leaves the root": (talk(video=["../a.mp4"]), "does not lie below the data root"),
    "an absolute path elsewhere": (talk(video=["/elsewhere/a.mp4"]), "does not lie below the data root"),
    "a stream": (talk(stream=True), "is a stream record"),
    "no conversation": (talk(conversations=None), "must be a list of {from, value}"),
    "a turn that is no object": (talk(conversations=["Hi"]), "must be a list of {from, value}"),
    "a system turn": (talk(conversations=[{"from": "system", "value": "s"}, *talk()["conversations"]]), "a turn is from 'system'"),
    "two questions in a row": (talk(conversations=[talk()["conversations"][0], *talk()["conversations"]]), "turns must go human, gpt"),
    "a question at the end": (talk(conversations=talk()["conversations"][:1]), "end with gpt"),
    "nobody asks": (talk(conversations=talk()["conversations"][1:]), "no turn from human"),
    "an empty answer": (talk(answer=" "), "completion is empty"),
    "a list": ([1], "must be a JSON object"),
}


@pytest.mark.parametrize(("record", "said"), HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_record_is_refused_with_file_and_row(tmp_path: Path, record: Any, said: str) -> None:
    with pytest.raises(DataError) as error:
        readers.vst(write(tmp_path, talk(), record), tmp_path, label_version="1")
    assert said in str(error.value)
    assert f"{tmp_path / 'set.jsonl'}, row 2: " in str(error.value)
    assert "row 1: " not in str(error.value)


def test_one_error_for_all_records(tmp_path: Path) -> None:
    file = write(tmp_path, talk(stream=True), talk(), talk(safety_labels={"visual": 0, "textual": 0}))
    with file.open("a") as more:
        more.write("\n{oops")
    with pytest.raises(DataError) as error:
        readers.vst(file, tmp_path, label_version="1")
    for said in ("3 problem(s)", "row 1: is a stream", "row 3: visual_label is 0, but 1 in", "row 4: not JSON in UTF-8"):
        assert said in str(error.value)


def test_the_polarity_of_a_file_must_be_told(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="label_version"):
        readers.vst(write(tmp_path, talk()), tmp_path)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="label_version must be"):
        readers.vst(write(tmp_path, talk()), tmp_path, label_version="legacy")


def test_a_legacy_question_that_spells_the_labels_out_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: a user turn of a legacy row names vidType"):
        read_one(tmp_path, talk("Use 0 for harmful in <vidType>."), version="0")


def test_placeholders_as_the_authors_code_reads_them(tmp_path: Path) -> None:
    """train.py, _convert_normal: split at the placeholder, strip, and put the medium first where there is no placeholder."""
    video = {"type": "video", "video": "v/a.mp4"}
    text = {"type": "text", "text": "What is it?"}
    for question, blocks in {
        "<video>\nWhat is it?": [video, text],
        "What is it?": [video, text],
        "What is it?\n<video>": [text, video],
    }.items():
        assert prompt_messages(read_one(tmp_path, talk(question)))[0]["content"] == blocks


def test_several_turns_and_an_answer_before_the_first_question(tmp_path: Path) -> None:
    turns = [
        {"from": "gpt", "value": "dropped"},
        {"from": "human", "value": "<image>\nFirst?$1$0"},
        {"from": "gpt", "value": "One."},
        {"from": "human", "value": "Second?"},
        {"from": "gpt", "value": "Two."},
    ]
    found = read_one(tmp_path, talk(conversations=turns, video=None, image="i.png"))
    assert found["history"] == [{"role": "user", "content": "<image>\nFirst?"}, {"role": "assistant", "content": "One."}]
    assert (found["prompt"], found["completion"], found["images"]) == ("Second?", "Two.", ["i.png"])


def test_llava_mixes(tmp_path: Path) -> None:
    """Ids repeat in them, a video may be a path, text has no media, and $0$1 is mathematics."""
    file = write(
        tmp_path,
        talk(id="000000033471", video="v/a.mp4", safety_labels=None),
        talk("Is it in $0$1?", id="000000033471", video=None, safety_labels=None),
        talk("<image>\n<image>\nCompare.", video=None, image=["i.png", "j.png"]),
        name="mix.json",
    )
    plain = readers.llava(file, tmp_path, source="mix", label_version="1")
    assert [row["id"] for row in plain] == ["mix-mix-1", "mix-mix-2", "mix-mix-3"]
    assert [row["videos"] + row["images"] for row in plain] == [["v/a.mp4"], [], ["i.png", "j.png"]]
    assert plain[1]["prompt"] == "Is it in $0$1?"
    assert [(row["visual_label"], row["textual_label"]) for row in plain] == [(None, None), (None, None), (1, 0)]
    for version, own in (("1", (1, 0)), ("0", (0, 1))):  # its own label wins, and only that has the file's polarity
        told = readers.llava(file, tmp_path, labels=(0, 0), label_version=version)
        assert [(row["visual_label"], row["textual_label"]) for row in told] == [(0, 0), (0, 0), own]


POLARISED = {
    "nested labels, which are safe in the old polarity": talk(safety_labels={"visual": 1, "textual": 1}),
    "flat labels": talk(safety_labels=None, visual_safety_label=1, textual_safety_label=1),
    "tags of an answer": talk(answer=COT, safety_labels=None),
    "tags of an earlier answer": talk(
        safety_labels=None,
        conversations=[*talk(answer=COT)["conversations"], *talk("And now?")["conversations"]],
    ),
}


@pytest.mark.parametrize("labels", [None, (0, 0)])
@pytest.mark.parametrize("record", POLARISED.values(), ids=POLARISED)
def test_a_llava_record_with_labels_needs_their_polarity(tmp_path: Path, record: dict[str, Any], labels: tuple[int, int] | None) -> None:
    file = write(tmp_path, talk("Who?", video=["v/b.mp4"], safety_labels=None), record)
    with pytest.raises(DataError, match="1 problem") as error:
        readers.llava(file, tmp_path, labels=labels)
    assert "row 2: holds labels, and a file does not say their polarity: give label_version" in str(error.value)
    old, new = (readers.llava(file, tmp_path, labels=labels, label_version=version)[1] for version in ("0", "1"))
    assert old != new
    assert old["label_version"] == new["label_version"] == "1"


def problem(**values: Any) -> dict[str, Any]:
    record = {"problem_id": "p", "data_type": "video", "path": "v/a.mp4", "problem": "What?", "problem_type": SAFETY_TYPE, "solution": COT}
    return record | values


def rl(folder: Path, *records: dict[str, Any], version: str = "1") -> list[Row]:
    return readers.vst_rl(write(folder, *records), folder, label_version=version)


def test_a_safety_problem(tmp_path: Path) -> None:
    (found,) = rl(tmp_path, problem(path=str(tmp_path / "v" / "a.mp4")))
    assert (found["prompt"], found["reference"], found["problem_type"], found["videos"]) == ("What?", "No.", SAFETY_TYPE, ["v/a.mp4"])
    assert (found["visual_label"], found["textual_label"]) == (1, 0)
    (old,) = rl(tmp_path, problem(), version="0")
    assert (old["visual_label"], old["textual_label"], old["label_version"]) == (0, 1, "1")


SOLUTIONS = {"multiple choice": "B", "numerical": "42", "OCR": "EXIT", "regression": "3.5", "free-form": "A cat."}


@pytest.mark.parametrize("kind", SOLUTIONS)
def test_other_problems_need_no_labels(tmp_path: Path, kind: str) -> None:
    assert {*SOLUTIONS, SAFETY_TYPE} == set(PROBLEM_TYPES)
    solution = f"<answer>{SOLUTIONS[kind]}</answer>"
    (found,) = rl(tmp_path, problem(problem_type=kind, solution=solution, options=["A. x", "B. y"], data_type="image", path="i.png"))
    assert (found["reference"], found["visual_label"], found["images"]) == (SOLUTIONS[kind], None, ["i.png"])
    assert found["prompt"] == ("What?Options:\nA. x\nB. y\n" if kind == "multiple choice" else "What?")  # as the authors join them


PROBLEMS = {
    "defect 17, a solution without tags": ({"solution": "No."}, "solution must hold <answer>"),
    "an empty answer": ({"solution": COT.replace("No.", " ")}, "solution must hold <answer>"),
    "two answers": ({"solution": COT + "<answer>Yes.</answer>"}, "solution must hold <answer>"),
    "no labels": ({"solution": "<answer>No.</answer>"}, "solution has no <vidType> and <textType>"),
    "a label with a full stop": ({"solution": COT.replace(">1<", ">1.<")}, "must hold <vidType>0</vidType>"),
    "an unknown type": ({"problem_type": "riddle"}, "problem_type must be one of"),
    "no type": ({"problem_type": None}, "problem_type is missing"),
    "choice without options": ({"problem_type": "multiple choice", "solution": "<answer>B</answer>"}, "options must be a list"),
    "a number that is none": ({"problem_type": "numerical", "solution": "<answer>many</answer>"}, "cannot be read as 'numerical'"),
    "another medium": ({"data_type": "audio"}, "data_type must be video or image"),
    "a path elsewhere": ({"path": "/elsewhere/a.mp4"}, "does not lie below the data root"),
    "no path": ({"path": None}, "path is missing"),
    "no problem": ({"problem": ""}, "problem must be text that is not empty"),
}


@pytest.mark.parametrize(("values", "said"), PROBLEMS.values(), ids=PROBLEMS)
def test_a_hostile_problem(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as error:
        rl(tmp_path, problem(**values))
    assert said in str(error.value)


def guard_row(harmless: bool, **values: Any) -> dict[str, Any]:
    turns = [{"safe_instruction": "What?", "response": "A."}, {"unsafe_instruction": "Who?", "response": "No."}]
    harmful = {"harmful_category": "privacy", "harmful_subcategory": "personal data"}
    if not harmless:
        turns = [{"instruction": "Do.", "response": "Sorry."}]
    return {"id": "x", "image": "ads/i.png", "safe": harmless, "instr-resp": turns} | ({} if harmless else harmful) | values


def test_vlguard(tmp_path: Path) -> None:
    found = readers.vlguard(write(tmp_path, guard_row(True), guard_row(False, image="j.png"), name="train.json"), tmp_path)
    assert [(row["prompt"], row["completion"], row["images"], row["visual_label"], row["textual_label"]) for row in found] == [
        ("What?", "A.", ["train/ads/i.png"], 0, 0),
        ("Who?", "No.", ["train/ads/i.png"], 0, 1),
        ("Do.", "Sorry.", ["train/j.png"], 1, None),
    ]
    assert [row["id"] for row in found] == ["vlguard-train-1-1", "vlguard-train-1-2", "vlguard-train-2"]
    assert [row["category"] for row in found] == [None, None, "personal data"]


@pytest.mark.parametrize(
    ("record", "said"),
    [
        (guard_row(True, safe="yes"), "safe must be true or false"),
        (guard_row(True, **{"instr-resp": [{"safe_instruction": "What?", "response": "A."}]}), "must hold unsafe_instruction once"),
        (guard_row(False, **{"instr-resp": []}), "must hold instruction once, as safe is false"),
        (guard_row(False, **{"instr-resp": [{"instruction": "Do."}]}), "response is missing"),
        (guard_row(False, image="../../i.png"), "does not lie below the data root"),
    ],
)
def test_a_hostile_vlguard_row(tmp_path: Path, record: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        readers.vlguard(write(tmp_path, record, name="train.json"), tmp_path)


def pair(**values: Any) -> dict[str, Any]:
    return {"id": 233, "image": "Unfair/racial/170.jpg", "question": "What race?", "chosen": "I cannot tell.", "rejected": "…"} | values


def test_spa_vl(tmp_path: Path) -> None:
    turns = [{"from": "Human", "value": "Hi"}, {"from": "Assistant", "value": "Hello"}, {"from": "Human", "value": "And now?"}]
    file = write(tmp_path, pair(class1="A", class2="B", class3="C"), pair(question=turns, image=None), name="train.json")
    one, two = readers.spa_vl(file, tmp_path)
    assert (one["prompt"], one["chosen"], one["rejected"], one["category"]) == ("What race?", "I cannot tell.", "…", "A/B/C")
    assert (one["images"], one["visual_label"], one["textual_label"]) == (["Unfair/racial/170.jpg"], None, None)
    assert (two["prompt"], [turn["content"] for turn in two["history"]], two["images"]) == ("And now?", ["Hi", "Hello"], [])


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rejected": None}, "rejected is missing"),
        ({"rejected": "I cannot tell."}, "are the same text"),
        ({"question": [{"from": "Human", "value": "Hi"}, {"from": "Assistant", "value": "Hello"}]}, "end with Human"),
        ({"image": {"bytes": "…"}}, "image must be text"),
    ],
)
def test_a_hostile_pair(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        readers.spa_vl(write(tmp_path, pair(**values), name="train.json"), tmp_path)


def test_parquet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "train-00000-of-00008.parquet"
    file.write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"must be \.json \(one list\) or \.jsonl"):
        readers.spa_vl(file, tmp_path)


def test_safevid_is_read_in_our_layout_without_what_is_held_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pairs = [{"prompt": "What?", "chosen": "No.", "rejected": "Yes.", "videos": [f"v/{n}.mp4"]} for n in range(1000)]
    out = sum(held_out(f"v/{n}.mp4") for n in range(1000))
    assert 0 < out < 20
    with caplog.at_level(logging.INFO):
        found = readers.safevid(write(tmp_path, *pairs), tmp_path)
    assert len(found) == 1000 - out
    assert not any(held_out(row["videos"][0]) for row in found)
    assert {row["source"] for row in found} == {"safevid-350k"}
    assert f"{out} of 1000 rows left out" in caplog.text


@pytest.mark.parametrize("name", ["safevid.json", "safevid.jsonl"])
def test_safevid_in_any_other_layout_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="the layout of SafeVid-350K's own files is not known; write your copy as JSON Lines"):
        readers.safevid(write(tmp_path, {"question": "What?", "video": "a.mp4"}, name=name), tmp_path)


@pytest.mark.parametrize("reader", readers.READERS)
def test_files_that_are_none(tmp_path: Path, reader: str) -> None:
    version = {"label_version": "1"} if reader.startswith("vst") else {}
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "broken.json").write_text("[")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, said in {
        "gone.json": "no such file",
        "gone.jsonl": "no such file",
        "object.json": "must hold one list",
        "broken.json": "not JSON",
        "empty.json": "holds no records",
        "empty.jsonl": "holds no records",
    }.items():
        said = "layout of SafeVid" if reader == "safevid" and name != "empty.jsonl" else said
        with pytest.raises(DataError, match=said):
            readers.READERS[reader](tmp_path / name, tmp_path, **version)
