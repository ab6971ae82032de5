"""What the tests of the gateway share."""

from __future__ import annotations

from typing import Any

import uvloop


def pytest_asyncio_loop_factories() -> dict[str, Any]:
    """The loop that the daemon has: loops differ in how connections end."""
    return {"uvloop": uvloop.new_event_loop}
