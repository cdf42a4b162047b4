"""What the tests of stages share: a config, a row of a video, and a server that says what it is told to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from videosafety.dataset_builder.config import Config, Server, Source
from videosafety.dataset_builder.rows import Row
from videosafety.dataset_builder.servers import Answer

SAFE, HARMFUL = '{"visual": "safe", "category": "weapons"}', '{"visual": "harmful", "category": "theft"}'


def config(folder: Path, **changes: Any) -> Config:
    servers = {name: Server("http://127.0.0.1:9/v1", name, name) for name in ("a", "b", "c")}
    return Config(
        **({"name": "toy", "sources": [Source("mine", folder=".")], "licence": "mit", "servers": servers, "root": folder} | changes)
    )


def video_row(file: Path) -> Row:
    told = {"visual_label": None, "category": None, "harm_spans": None}
    return {
        "id": f"mine/{file.name}",
        "file": str(file),
        "text": "A clip",
        "told": told,
        "provenance": {"source": "mine", "path": file.name},
    }


def asking(*texts: str | Exception) -> Any:
    """What a server says, one text a call, the last for ever; an exception is raised."""
    calls: list[tuple[str, Any, Any]] = []

    def ask(server: str, messages: Any, parameters: Any) -> Answer:
        calls.append((server, messages, parameters))
        said = texts[min(len(calls), len(texts)) - 1]
        if isinstance(said, Exception):
            raise said
        return Answer(said, server)

    ask.calls = calls  # type: ignore[attr-defined]
    return ask
