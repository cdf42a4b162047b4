"""Fixtures of the local test Hub: `hub` (LFS and Xet in turn), `home` (an HF_HOME for one test), `here` (this process talks to it).

    from hub_fixtures import home, hub, here  # noqa: F401

No conftest.py: a second module of that name would hide tests/conftest.py from those who import from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hub_server import Hub, hub_server


@pytest.fixture(params=["lfs", "xet"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    """A running server, once for each way of uploading. `@pytest.mark.parametrize("hub", ["lfs"], indirect=True)` for one of them."""
    with hub_server(tmp_path / "hub", xet=request.param == "xet") as served:
        yield served


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """For Hub.env(home): caches that nobody else uses."""
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def here(hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """`hub`, with huggingface_hub of this very process sent to it, as alice: what it read from the environment at import is set anew.

    For transformers and datasets, which read it too, use a subprocess with Hub.env(home).
    """
    from huggingface_hub import constants, hf_api
    from huggingface_hub.utils import _http, _xet

    for name, value in hub.settings(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # of the functions that are no methods: snapshot_download, create_repo, …
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", not hub.has_xet)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_XET_CACHE", str(home / "xet"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())
    monkeypatch.setattr(_xet, "XET_CONNECTION_INFO_CACHE", {})
    _http.close_session()
    return hub
