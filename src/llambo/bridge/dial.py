"""Which bridge is meant: a dial string, the path of a Unix socket alone, or the default one."""

from __future__ import annotations

import os

from llambo.core.address import Address, parse_address, unix_address


def default_socket_path() -> str:
    """Where a bridge listens when nothing was said to it: `LLAMBO_BRIDGE_SOCKET`, else what the configuration says.

    Raises: `BadConfig`.
    """
    path = os.environ.get("LLAMBO_BRIDGE_SOCKET")
    if not path:
        from llambo.core import config  # noqa: PLC0415 - heavy, and seldom needed

        path = config.load().settings.bridge.socket_path
    return os.path.expanduser(path)  # noqa: PTH111 - as the bridge does; it need not be a path: tcp!HOST!PORT


def parse_dial(dial: str) -> Address:
    """The address in a dial string; what is no `tcp!HOST!PORT` is the path of a socket.

    Raises: `BadConfig` for a port that is none, or a path that no socket can have.
    """
    return parse_address(dial) if dial.startswith("tcp!") else unix_address(dial.removeprefix("unix!"))
