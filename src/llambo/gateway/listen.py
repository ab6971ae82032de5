"""Where HTTP is spoken: the sockets, when one may be opened at all, and the certificate.

Owns what a bad address, a port in use and a bad certificate are called. What is said on a socket it does not know.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from llambo.core.address import UnixAddress
from llambo.core.errors import BadConfig, LlamboError, NameInUse, Refused
from llambo.core.http_address import HttpAddress, parse_http_address
from llambo.core.sections import Gateway as GatewaySettings
from llambo.core.tokens import TokenStore
from llambo.core.unix_socket import bind_unix

BACKLOG = 1024
_ELSEWHERE = "set LLAMBO_GATEWAY_LISTEN to another address, such as 127.0.0.1:0 for any port, or to off"
_log = logging.getLogger("llambo.gateway")


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that listens: its sockets (several where a name has several addresses), and what clients dial."""

    sockets: tuple[socket.socket, ...]
    url: str
    host: str
    remove_file: Callable[[], None]

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return not self.host

    def close(self) -> None:
        """Stops listening and leaves no file; again is fine."""
        for bound in self.sockets:
            bound.close()
        self.remove_file()


async def open_listeners(settings: GatewaySettings, tokens: TokenStore) -> list[Listener]:
    """Listens on everything that `gateway.listen` names; when one cannot be, none is left.

    Raises: `BadConfig`, `NameInUse`, `Refused`, each naming the address.
    """
    listeners: list[Listener] = []
    try:
        for text in filter(None, settings.listen.split(",")):
            match parse_http_address(text):
                case UnixAddress(path):
                    listeners.append(_unix(Path(path)))
                case HttpAddress() as address:
                    listeners.append(await _tcp(address, settings, tokens))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _unix(path: Path) -> Listener:
    try:
        bound = bind_unix(path, BACKLOG)
    except NameInUse:
        raise NameInUse(f"cannot serve HTTP on {path}: it is in use; {_ELSEWHERE}") from None
    return Listener((bound.socket,), f"unix!{path}", "", bound.remove_file)


async def _tcp(address: HttpAddress, settings: GatewaySettings, tokens: TokenStore) -> Listener:
    hosts = await _resolve(address)
    has_tls = bool(settings.tls_certificate)
    if not all(is_loopback(host) for host in hosts):
        now = time.time()
        if not any(token.expires is None or token.expires > now for token in tokens.list()):
            hint = "make one with `llamboctl token create --scope infer`"
            raise Refused(f"refusing to serve HTTP on {address} without a valid token: {hint}")
        if not has_tls:
            _log.warning("HTTP on %s has no TLS: tokens and texts can be read on the way", address)
    sockets: list[socket.socket] = []
    port = address.port
    try:
        for host in hosts:
            with _explained(address, may_lack=bool(sockets)):
                sockets.append(_bind(host, port))
                port = sockets[0].getsockname()[1]
    except BaseException:
        for bound in sockets:
            bound.close()
        raise
    url = f"{'https' if has_tls else 'http'}://{HttpAddress(address.host, port)}"
    return Listener(tuple(sockets), url, address.host, lambda: None)


async def _resolve(address: HttpAddress) -> list[str]:
    """The numeric addresses of a host, IPv4 first."""
    host = None if address.host == "*" else address.host
    try:
        found = await asyncio.get_running_loop().getaddrinfo(
            host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError):
        raise BadConfig(f"gateway.listen: {address.host!r} is neither an address nor a name that is known") from None
    ordered = sorted(found, key=lambda info: info[0] != socket.AF_INET)
    return list(dict.fromkeys(str(info[4][0]) for info in ordered))


def _bind(host: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if bound.family == socket.AF_INET6:
            # An IPv4 client would come with an address like ::ffff:127.0.0.1, and need rules of its own.
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((host, port))
        bound.listen(BACKLOG)
        bound.setblocking(False)
    except BaseException:
        bound.close()
        raise
    return bound


def is_loopback(host: str) -> bool:
    """Whether a numeric address is this machine's own alone."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    return False


@contextlib.contextmanager
def _explained(address: HttpAddress, *, may_lack: bool) -> Iterator[None]:
    """Errors of binding as ours; with `may_lack` a family of addresses that this machine lacks is left out."""
    try:
        yield
    except OSError as error:
        if may_lack and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return
        raise _explain(address, error) from error


def _explain(address: HttpAddress, error: OSError) -> LlamboError:
    match error.errno:
        case errno.EADDRINUSE:
            return NameInUse(f"cannot serve HTTP on {address}: it is in use; {_ELSEWHERE}")
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return BadConfig(f"gateway.listen: {address.host} is no address of this machine")
        case errno.EACCES | errno.EPERM:
            return Refused(f"cannot serve HTTP on {address}: permission denied; {_ELSEWHERE}")
        case _:
            return LlamboError(f"cannot serve HTTP on {address}: {error.strerror or error}")


def tls_context(settings: GatewaySettings) -> ssl.SSLContext | None:
    """What TLS needs, or None where no certificate is configured. Reads the files once.

    Raises: `BadConfig` that names the key.
    """
    if not settings.tls_certificate:
        return None
    certificate = _pem("tls_certificate", settings.tls_certificate, "CERTIFICATE-----", "certificate")
    key = _pem("tls_key", settings.tls_key, "PRIVATE KEY-----", "private key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # A key with a password would be asked for on the terminal otherwise.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadConfig(f"gateway.tls_key: {key} is not the key of the certificate {certificate}") from None
        raise BadConfig(f"gateway.tls_certificate: {certificate} with {key} cannot be used: {error.reason}") from None
    return context


def _pem(name: str, path: str, mark: str, what: str) -> Path:
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise BadConfig(f"gateway.{name}: {file} cannot be read: {error.strerror}") from None
    if mark not in text:
        raise BadConfig(f"gateway.{name}: {file} holds no {what} as PEM")
    if "ENCRYPTED" in text:
        raise BadConfig(f"gateway.{name}: {file} is encrypted: give a key without a password, readable by you alone")
    return file
