"""The access tokens of an installation: made, listed, revoked and checked, in one file that holds no secret.

Owns the file (JSON, mode 0600, replaced atomically) and the hashing. Knows nothing of listeners or commands: what a
scope allows is decided where the commands are.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import msgspec

from llambo.core.errors import BadConfig, BadRequest, NotFound

Scope = Literal["read", "infer", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
SECRET_PREFIX = "llb_"  # noqa: S105 - what a secret starts with, so that scanners can find leaked ones

_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class AccessToken:
    """What is known of a token once its secret was shown. Times in seconds since 1970; `expires` None is never."""

    id: str
    scope: Scope
    created: float
    expires: float | None


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    scope: Scope
    sha256: str
    created: float
    expires: float | None = None

    def public(self) -> AccessToken:
        return AccessToken(self.id, self.scope, self.created, self.expires)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: Literal[1]
    tokens: tuple[_Entry, ...]


class TokenStore:
    """The tokens in the file at `path`, which need not exist yet; changes by other processes are seen at the next call.

    Every method raises `BadConfig` when the file is damaged or cannot be read.
    """

    def __init__(self, path: Path, *, now: Callable[[], float] = time.time) -> None:
        self._path = path
        self._now = now
        self._stamp: tuple[int, ...] = ()
        self._entries: tuple[_Entry, ...] = ()

    def create(self, scope: Scope, *, expires_s: float | None = None) -> tuple[str, str]:
        """Makes a token and returns its id and its secret, which is stored nowhere. `expires_s` counts from now.

        Raises: `BadRequest` for an unknown scope or a time that is not positive.
        """
        if scope not in SCOPES:
            raise BadRequest(f"unknown scope {scope!r}: choose one of {', '.join(SCOPES)}")
        if expires_s is not None and not expires_s > 0:
            raise BadRequest(f"a token must expire after more than 0 s, not {expires_s}")
        secret = SECRET_PREFIX + secrets.token_urlsafe(_SECRET_BYTES)
        created = self._now()
        expires = None if expires_s is None else created + expires_s
        entry = _Entry(secrets.token_hex(4), scope, _hash(secret), created, expires)
        with self._locked():
            self._write((*self._read(), entry))
        return entry.id, secret

    def list(self) -> tuple[AccessToken, ...]:
        """All tokens, the oldest first, expired ones too."""
        return tuple(entry.public() for entry in self._read())

    def revoke(self, token_id: str) -> None:
        """Forgets a token for ever.

        Raises: `NotFound`.
        """
        with self._locked():
            entries = self._read()
            kept = tuple(entry for entry in entries if entry.id != token_id)
            if len(kept) == len(entries):
                raise NotFound(f"there is no token {token_id!r}")
            self._write(kept)

    def verify(self, secret: str) -> AccessToken | None:
        """The valid token with this secret, or None; takes the same time for each wrong one."""
        digest = _hash(secret)
        found: _Entry | None = None
        for entry in self._read():
            # No early exit: which entry matches must not show in the time that this takes.
            if hmac.compare_digest(entry.sha256, digest):
                found = entry
        if found is None or (found.expires is not None and found.expires <= self._now()):
            return None
        return found.public()

    def is_valid(self, token_id: str) -> bool:
        """Whether the token of that id, which was verified before, has neither expired nor been revoked since."""
        expires = (entry.expires for entry in self._read() if entry.id == token_id)
        return any(moment is None or moment > self._now() for moment in expires)

    def _read(self) -> tuple[_Entry, ...]:
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                stamp = (facts.st_ino, facts.st_size, facts.st_mtime_ns)
                if stamp != self._stamp:
                    self._entries = msgspec.json.decode(file.read(), type=_File).tokens
                    self._stamp = stamp
        except FileNotFoundError:
            self._entries, self._stamp = (), ()
        except OSError as error:
            raise BadConfig(f"the token file {self._path} cannot be read: {error.strerror}") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadConfig(
                f"the token file {self._path} is damaged ({error}): restore it, or remove it and make new tokens"
            ) from error
        return self._entries

    def _write(self, entries: tuple[_Entry, ...]) -> None:
        content = msgspec.json.format(msgspec.json.encode(_File(version=1, tokens=entries)), indent=1)
        fresh = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            # O_EXCL with the mode: the content is never readable to others, not even for a moment.
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content + b"\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self._path)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            raise BadConfig(f"the token file {self._path} cannot be written: {error.strerror}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One writer at a time, across processes; the lock is on the directory, because the file is replaced."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise BadConfig(f"the directory of {self._path} cannot be used: {error.strerror}") from error
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)


def _hash(secret: str) -> str:
    # 256 random bits need no slow hash: there is nothing to guess. Lone surrogates must not raise.
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
