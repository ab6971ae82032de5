"""The namespace's TCP listener: when it may be opened at all."""

from __future__ import annotations

import ipaddress
import logging

from llambo.core.address import TcpAddress
from llambo.core.errors import BadConfig, Refused
from llambo.core.tokens import TokenStore
from llambo.ninep.address import parse_address
from llambo.ninep.server import FileServer

_log = logging.getLogger("llambo.namespace")


async def listen_tcp(server: FileServer, address: str, tokens: TokenStore) -> str:
    """Listens on `tcp!HOST[!PORT]`, where every client needs a token, and returns what clients dial.

    Raises: `Refused` where there is no token that anybody could come with, `BadConfig`, `NameInUse`.
    """
    parsed = parse_address(address)
    if not isinstance(parsed, TcpAddress):
        raise BadConfig(f"{address!r} is no TCP address: write tcp!HOST!PORT")
    if not tokens.list():
        raise Refused(
            f"refusing to listen on {address} without tokens: make one with `llamboctl token create --scope read`"
        )
    dial = await server.listen(str(parsed))
    host = dial.split("!")[1]
    if not ipaddress.ip_address(host).is_loopback:
        _log.warning("%s has no TLS: tokens and texts can be read on the way", dial)
    return dial
