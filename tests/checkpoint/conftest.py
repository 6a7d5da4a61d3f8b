"""For tests against servers on this machine: depthup may use HTTP, and is impatient."""

from __future__ import annotations

from pathlib import Path

import huggingface_hub.constants
import pytest
import servers

from depthup.checkpoint import web

IMPATIENT = web.Patience(
    num_attempts=4, first_wait_seconds=0.01, longest_wait_seconds=0.02, longest_asked_seconds=2.0,
    stall_seconds=0.3, progress_bytes=1000,
)  # fmt: skip


@pytest.fixture
def online(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HTTP is allowed (the rest of the tests runs offline), with an empty cache and no token of the user's."""
    monkeypatch.setattr(web, "PATIENCE", IMPATIENT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))


@pytest.fixture
def server(tmp_path: Path, online: None):
    """A server of the folder ``tmp_path / "served"``."""
    (tmp_path / "served").mkdir()
    with servers.serving(servers.Server(tmp_path / "served")) as served:
        yield served
