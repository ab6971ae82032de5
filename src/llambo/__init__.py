"""Llambo: llama.cpp models across many isolated nodes, behind one door.

The names of the Python interface are loaded on first use, so that a command that needs none of them starts fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from llambo.core.version import __version__

if TYPE_CHECKING:
    from llambo.bridge.async_client import AsyncBridge
    from llambo.bridge.client import Bridge
    from llambo.bridge.client_calls import Completion, Token
    from llambo.bridge.pool import BridgePool
    from llambo.core import errors
    from llambo.core.types import Message
    from llambo.library import Cluster, connect

__all__ = [
    "AsyncBridge",
    "Bridge",
    "BridgePool",
    "Cluster",
    "Completion",
    "Message",
    "Token",
    "__version__",
    "connect",
    "errors",
]

_HOMES = {
    "AsyncBridge": "llambo.bridge.async_client",
    "Bridge": "llambo.bridge.client",
    "BridgePool": "llambo.bridge.pool",
    "Cluster": "llambo.library",
    "Completion": "llambo.bridge.client_calls",
    "Message": "llambo.core.types",
    "Token": "llambo.bridge.client_calls",
    "connect": "llambo.library",
}


def __getattr__(name: str) -> object:
    if name == "errors":
        return import_module("llambo.core.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
