"""What the engine's tests share: a loopback server that is also the model hub of the test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from file_server import FileServer, serving


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serving() as owner:
        monkeypatch.setenv("HF_ENDPOINT", owner.url)
        yield owner
    from huggingface_hub import close_session

    close_session()
