"""The documented `videosafety publish model` commands on the folder that a run leaves, as dry runs: nothing is sent."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from sft_cases import recipe, rows, trainer
from typer.testing import CliRunner

from conftest import ROOT

pytest.importorskip("trl", reason="the recipes need the extra `train`")

from videosafety import publish
from videosafety.hub_cards import publish as publishing
from videosafety.hub_cards.upload import PublishError
from videosafety.training_recipes.data import save
from videosafety.training_recipes.recipe import finish, train

DOCUMENTS = ("training_recipes/community_lora/README.md", "training_recipes/videosafety_r1/README.md", "docs/training.md")
DOCUMENTS += ("docs/notebooks/community_lora.ipynb",)
COMMAND = re.compile(r"videosafety (publish model [\w./-]+ --repo [^`\n\"#\\]+)")


@pytest.fixture(scope="module", params=["whole", "LoRA"])
def left(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a real run with checkpoints."""
    out = tmp_path_factory.mktemp(request.param)
    save(rows(2), out / "rows.jsonl")
    what = recipe(data=[str(out / "rows.jsonl")], lora_rank=2 * (request.param == "LoRA"))
    found = trainer(out / "run", what, rows(2), per_device_train_batch_size=1, max_steps=2, save_strategy="steps", save_steps=1)
    train(found)
    return finish(found, what)


def commands() -> list[list[str]]:
    texts = [(ROOT / name).read_text(encoding="utf-8") for name in DOCUMENTS]
    assert all(COMMAND.search(text) for text in texts)
    return [shlex.split(command) for text in texts for command in COMMAND.findall(text)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_a_documented_command_takes_what_a_run_left(command: list[str], left: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publishing, "remote_results", lambda repo: None)  # no network
    given = [str(left), *command[3:], *({"--dry-run"} - set(command))]
    done = CliRunner().invoke(publish.app, ["model", *given])
    assert done.exit_code == 0, done.output
    assert re.search(r" model\.safetensors\n", done.stdout)
    assert done.stdout.count("checkpoint-") == 2, "one line for each folder"
    assert done.stderr.splitlines()[0] == "warning: checkpoint-1, checkpoint-2 of the run: left out, as nobody but the run needs them"


def test_a_run_leaves_no_pickle_beside_its_checkpoints(left: Path) -> None:
    assert {path.name for path in left.iterdir() if path.is_dir()} >= {"checkpoint-1", "checkpoint-2"}
    there = [path.relative_to(left) for path in left.rglob("*.bin")]
    assert [path for path in there if not path.parts[0].startswith("checkpoint-")] == []


def test_folders_of_that_name_are_looked_at_where_no_run_left_them(left: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "checkpoint-1").mkdir(parents=True)
    (other / "checkpoint-1" / "optimizer.pt").write_bytes(b"\x80\x04")
    with pytest.raises(PublishError, match=r"checkpoint-1/optimizer\.pt: is a pickle"):
        publishing.plan(other, "safety-lab/tiny", licence="apache-2.0")
