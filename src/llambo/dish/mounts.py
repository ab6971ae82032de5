"""dish's own namespace: which server's files are where, and what a path means.

Owns mounts, binds and the directories that they make on their way. A bind stands for what its source was when it was
made, as in Plan 9; a mount replaces what was there.
"""

from __future__ import annotations

import contextlib
import fnmatch
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace

from llambo.core.errors import BadRequest, NotFound, Refused
from llambo.dish.servers import File, Files
from llambo.ninep.errors import NOT_FOUND, PERMISSION
from llambo.ninep.messages import DMDIR, QTDIR, Qid, Stat

_DIRECTORY = Qid(QTDIR, 0, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """A file of a tree: what a name of the namespace stands for. `source` is what it is called in `mount`'s list."""

    files: Files
    path: str
    source: str
    is_mount: bool = False


class Mounts:
    """The namespace. Paths given to its methods are absolute and clean, as `absolute` makes them."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}

    def __str__(self) -> str:
        return "".join(f"{place.source} on {path}\n" for path, place in sorted(self._places.items()))

    @property
    def points(self) -> list[str]:
        """Where something is mounted or bound."""
        return sorted(self._places)

    def mount(self, files: Files, path: str, source: str) -> None:
        """Puts a tree at `path`. Raises: `BadRequest` for the root, `Refused` where something is mounted."""
        if path == "/":
            raise BadRequest("nothing is mounted on /: choose a name such as /n/other")
        if path in self._places:
            raise Refused(f"{path} is taken by {self._places[path].source}; umount {path} first")
        self._places[path] = Place(files, "/", source, is_mount=True)

    async def bind(self, source: str, path: str) -> None:
        """Lets `path` stand for what `source` is now. Raises: `BadRequest`, `NotFound`, `Refused`."""
        place = self.find(source)
        if place is None:
            raise BadRequest(f"{source} belongs to no mounted tree: bind a file or directory of one")
        if path == "/":
            raise BadRequest("nothing is bound to /: choose a name such as /nodes")
        with _named(place, source):
            await place.files.stat(place.path)
        if path in self._places and self._places[path].is_mount:
            raise Refused(f"{path} is taken by {self._places[path].source}; umount {path} first")
        self._places[path] = Place(place.files, place.path, source)

    async def unmount(self, path: str) -> None:
        """Takes away what is at `path`, and hangs up where no bind uses the server. Raises: `NotFound`, `Refused`."""
        place = self._places.get(path)
        if place is None:
            raise NotFound(f"nothing is mounted on {path}; there are {', '.join(self.points)}")
        users = [point for point, other in self._places.items() if other.files is place.files and point != path]
        if place.is_mount and users:
            raise Refused(f"{path} is in use: umount {', '.join(users)} first")
        del self._places[path]
        if place.is_mount:
            await place.files.close()

    async def close(self) -> None:
        """Takes everything away."""
        for place in self._places.values():
            if place.is_mount:
                await place.files.close()
        self._places.clear()

    def find(self, path: str) -> Place | None:
        """The file that `path` means, which may not exist; None outside every tree."""
        point = path
        while point != "/":
            if (place := self._places.get(point)) is not None:
                return Place(place.files, _join(place.path, path[len(point) :]), place.source)
            point = point.rpartition("/")[0] or "/"
        return None

    @contextlib.asynccontextmanager
    async def open(self, path: str, mode: str = "r") -> AsyncIterator[File]:
        """Opens a file: "r", "w" (truncates), "a" or "rw". Raises: `NotFound`, and what the server refuses with."""
        place = self.find(path)
        if place is None:
            raise Refused(f"{path}: {PERMISSION}") if self._below(path) else NotFound(f"{path}: {NOT_FOUND}")
        with _named(place, path):
            async with place.files.open(place.path, mode) as file:
                yield file

    async def read_file(self, path: str) -> bytes:
        """The whole content of a file."""
        pieces = []
        async with self.open(path) as file:
            while piece := await file.read():
                pieces.append(piece)
        return b"".join(pieces)

    async def stat(self, path: str) -> Stat:
        """The entry of a file or directory, under the name that it has here."""
        place = self.find(path)
        if place is not None:
            with _named(place, path):
                return replace(await place.files.stat(place.path), name=path.rpartition("/")[2])
        if path == "/" or self._below(path):
            return _directory(path)
        raise NotFound(f"{path}: {NOT_FOUND}")

    async def ls(self, path: str) -> list[Stat]:
        """The entries of a directory, with what is mounted in it; a file's own where it is none."""
        place, below = self.find(path), self._below(path)
        if place is None and not below and path != "/":
            raise NotFound(f"{path}: {NOT_FOUND}")
        entries: list[Stat] = []
        if place is not None:
            with _named(place, path):
                entries = await place.files.ls(place.path)
        names = {entry.name for entry in entries}
        return [*entries, *(_directory(name) for name in below if name not in names)]

    async def remove(self, path: str) -> None:
        """Removes a file. Raises: `Refused`, `NotFound`."""
        place = self.find(path)
        if place is None or path in self._places:
            raise Refused(f"{path}: {PERMISSION}")
        with _named(place, path):
            await place.files.remove(place.path)

    async def match(self, pattern: str) -> list[str]:
        """The paths that an absolute pattern means, sorted; `*`, `?` and `[…]` never stand for a /."""
        found = ["/"]
        for name in filter(None, pattern.split("/")):
            if not set(name) & set("*?["):
                found = [_join(path, name) for path in found]
                continue
            found = [
                _join(path, entry.name)
                for path in found
                for entry in await self._entries(path)
                if fnmatch.fnmatchcase(entry.name, name)
            ]
        if set(pattern.rpartition("/")[2]) & set("*?["):
            return sorted(found)
        return sorted([path for path in found if await self._is_there(path)])

    async def _entries(self, path: str) -> list[Stat]:
        try:
            return await self.ls(path) if (await self.stat(path)).is_directory else []
        except (NotFound, Refused):
            return []

    async def _is_there(self, path: str) -> bool:
        try:
            await self.stat(path)
        except (NotFound, Refused):
            return False
        return True

    def _below(self, path: str) -> list[str]:
        """The names in `path` that lead to what is mounted."""
        start = path.rstrip("/") + "/"
        return sorted({point[len(start) :].partition("/")[0] for point in self._places if point.startswith(start)})


def absolute(path: str, directory: str) -> str:
    """`path` as seen from `directory`, without `.`, `..` and doubled slashes."""
    names: list[str] = []
    for name in (path if path.startswith("/") else f"{directory}/{path}").split("/"):
        if name == "..":
            names = names[:-1]
        elif name not in {"", "."}:
            names.append(name)
    return "/" + "/".join(names)


def _join(path: str, rest: str) -> str:
    return f"{path.rstrip('/')}/{rest.lstrip('/')}".rstrip("/") or "/"


def _directory(path: str) -> Stat:
    return Stat(path.rpartition("/")[2] or "/", _DIRECTORY, DMDIR | 0o555, uid="dish", gid="dish", muid="dish")


@contextlib.contextmanager
def _named(place: Place, path: str) -> Iterator[None]:
    """Lets what does not exist be called as it was asked for, and not as its own server has it."""
    try:
        yield
    except NotFound as error:
        start = f"{place.path}: "
        if place.path == path or not error.message.startswith(start):
            raise
        raise NotFound(f"{path}: {error.message.removeprefix(start)}") from None
