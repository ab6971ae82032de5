"""Where Styx servers listen: addresses as Plan 9 writes them, with the protocol's own port. Pure."""

from __future__ import annotations

from llambo.core import address
from llambo.core.address import Address

DEFAULT_PORT = 5640


def parse_address(text: str) -> Address:
    """The address in `text`: `unix!PATH`, a path, or `tcp!HOST[!PORT]`.

    Raises: `BadConfig`.
    """
    return address.parse_address(text, DEFAULT_PORT)
