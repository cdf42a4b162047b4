"""The card of a checkpoint: filled from the folder's own files, and the same each time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from model_cases import REPO, folder, made  # noqa: F401

from videosafety.hf_models.fold import fold
from videosafety.hf_models.tiny import build_tiny
from videosafety.hub_cards.publish import plan
from videosafety.hub_cards.upload import PublishError

RECIPE = {"stage": "at_sft", "model": "Org/base", "revision": "abc", "train": ["alarm_tokens", "alarm_heads"], "fps": 1.0, "max_frames": 32}
RUN = {
    "recipe": RECIPE,
    "settings": {"learning_rate": 1e-5, "num_train_epochs": 1, "seed": 7, "output_dir": "/home/jane/runs/x"},
    "data_sha256": {"/home/jane/data/rows.jsonl": "ab" * 32},
    "steps": 12, "processes": 2, "hardware": "H100", "versions": {"torch": "2.0"}, "commit": "c0ffee", "finished": "2026-11-21T00:00:00Z",
}  # fmt: skip
STATE = {"log_history": [{"loss": 2.5}, {"eval_loss": 9.0}, {"loss": 1.25}]}
README = "---\nlicense: mit\ndatasets: [Org/rows]\ntags: [mine]\nwidget: []\n---\n# T\n\nTrained with care.\n\n## More\n"


def test_the_card_is_filled_from_the_run(folder: Path) -> None:
    (folder / "training_recipe.json").write_text(json.dumps(RUN))
    (folder / "trainer_state.json").write_text(json.dumps(STATE))
    (folder / "README.md").write_text(README)
    found = plan(folder, REPO)
    card = ModelCard(found.card)
    data = card.data.to_dict()
    assert (data["license"], data["base_model"], data["base_model_relation"]) == ("mit", "Org/base", "finetune")
    assert data["datasets"] == ["Org/rows"]
    assert {"mine", "alarm-tokens", "safety"} <= set(data["tags"])
    assert "widget" not in data
    for words in (
        "| stage | at_sft |", "| learned | alarm_tokens, alarm_heads |", "| learning rate | 1e-05 |", "| seed | 7 |",
        "| optimiser steps | 12 |", "| code | commit c0ffee |", "| loss, first and last logged | 2.5, 1.25 |",
        "| rows.jsonl | `" + "ab" * 32 + "` |", "Trained with care.", "### More", "code_revision", "2505.16643", "not as the only guard",
    ):  # fmt: skip
        assert words in card.text, words
    assert "jane" not in found.card
    assert "Untrained" not in card.text
    assert found.warnings, "the record itself holds paths of a home folder"


@pytest.mark.parametrize("trained", [True, False])
def test_what_the_base_said_of_untrained_heads_goes_when_they_were_trained(trained: bool, folder: Path) -> None:
    assert "heads are untrained" in (folder / "README.md").read_text()
    if trained:
        (folder / "training_recipe.json").write_text(json.dumps(RUN))
    assert ("heads are untrained" in plan(folder, REPO, licence="mit").card) is not trained


def test_a_stage_that_left_the_heads_alone_says_so(folder: Path) -> None:
    (folder / "training_recipe.json").write_text(
        json.dumps(RUN | {"recipe": RUN["recipe"] | {"stage": "grpo", "train": ["language_model"]}})
    )  # type: ignore[operator]
    assert "did not train the alarm heads" in plan(folder, REPO, licence="mit").card


def test_the_card_of_an_untrained_checkpoint_says_so(folder: Path) -> None:
    card = plan(folder, REPO, licence="mit").card
    assert "Nothing among these files says that the alarm heads were trained" in card
    assert "random weights" in card
    assert "no record of a run" in card


@pytest.mark.parametrize("kind", ["folded", "plain"])
def test_cards_of_checkpoints_without_code(kind: str, made: Path, tmp_path: Path) -> None:
    out = fold(made, tmp_path / "out") if kind == "folded" else build_tiny(tmp_path / "out", alarm=False)
    found = plan(out, REPO, licence="mit")
    assert found.code == ()
    assert "trust_remote_code" not in found.card
    assert ("alarm_heads.safetensors" in found.card) == (kind == "folded")
    assert ("alarm-tokens" in ModelCard(found.card).data.tags) == (kind == "folded")


def test_a_card_of_ours_can_be_published_again(folder: Path) -> None:
    """As of a repository that was fetched and published under another name: nothing piles up."""
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# T\n\nIts own words.\n")
    once = plan(folder, REPO).card
    (folder / "README.md").write_text(once)
    assert plan(folder, REPO).card == once


def test_markup_in_what_a_folder_says_stays_text(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"note": "<script>x</script> | b"}))
    card = plan(folder, REPO, licence="mit").card
    assert "<script>" not in card


def test_front_matter_that_is_no_yaml(folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(PublishError, match="metadata that is no YAML"):
        plan(folder, REPO, licence="mit")
