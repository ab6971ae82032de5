"""Clusters for tests: with health checks that are quick, and a way to wait for what they do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from llambo.core import config


def quick(**sections: dict[str, Any]) -> config.Settings:
    """Settings with health checks that find a hanging node within a second; `sections` change more."""
    balancer = {
        "health_check_interval": "200ms",
        "health_check_timeout": "300ms",
        "health_check_failures": 2,
        **sections.pop("load_balancer", {}),
    }
    return config.Settings.model_validate({"load_balancer": balancer, **sections})


async def until(condition: Callable[[], object], limit_s: float = 15.0) -> None:
    """Returns once `condition` holds."""
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.005)
