"""What a node may touch: its model, its own directory, and what the engine needs to know of the machine.

Owns the kernel's interfaces for that, through ctypes: Landlock (files, TCP, signals and abstract sockets, by what this
kernel's version has), seccomp (no sockets but Unix streams, no connection outwards) and no_new_privs. Knows nothing of
engines and launchers. Sources: landlock(7), seccomp(2), prctl(2), and the headers linux/landlock.h, linux/seccomp.h
and linux/audit.h.

A restriction holds for the thread that asks for it and for those it starts: call `enforce` before the first of them.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import stat
import struct
import sys
from collections.abc import Iterable
from pathlib import Path

NO_NEW_PRIVS = "no-new-privs"
LANDLOCK_FS = "landlock-fs"
LANDLOCK_TCP = "landlock-tcp"
LANDLOCK_SCOPE = "landlock-scope"
SECCOMP_NET = "seccomp-net"

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every processor since Linux 5.13
_VERSION_FLAG = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_SECCOMP = 22
_SECCOMP_MODE_FILTER = 2

# Access rights to files, by bit.
_WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 1, 1 << 2, 1 << 3
_REMOVE_DIR, _REMOVE_FILE = 1 << 4, 1 << 5
_MAKE_DIR, _MAKE_REG, _MAKE_SOCK = 1 << 7, 1 << 8, 1 << 9
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV  # those that a rule for a single file may name

_READ = _READ_FILE | _READ_DIR  # not execute: nothing is ever run by a node
_DEVICE = _READ | _WRITE_FILE | _IOCTL_DEV
_OWN = _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _MAKE_SOCK | _REFER | _TRUNCATE

_NET_BIND_TCP, _NET_CONNECT_TCP = 1 << 0, 1 << 1
_SCOPE_ABSTRACT_SOCKETS, _SCOPE_SIGNALS = 1 << 0, 1 << 1

ENGINE_READS = (
    "/proc/self",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/sys/devices/system/cpu",
    "/sys/devices/system/node",
    # Libraries that are loaded when they are first needed, such as the one that unwinds a C++ exception.
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/local/lib",
    "/etc/ld.so.cache",
)
"""What llama.cpp and its libraries read, besides the model."""

GPU_READS = (
    "/proc/devices",
    "/proc/driver",
    "/proc/modules",
    "/proc/sys/vm",
    "/sys/bus/pci",
    "/sys/class",
    "/sys/devices",
)
"""What a graphics driver reads as well, where there are devices for it."""

_GPU_DEVICES = ("nvidia", "dri", "kfd")  # how their names in /dev begin; directories count with all that is in them

# System calls by number: socket, connect, io_uring_setup (which could do both unseen).
_SYSCALLS = {"x86_64": (0xC000003E, 41, 42, 425), "aarch64": (0xC00000B7, 198, 203, 425)}

# Found out once, before the zygote forks: a node that imports and compiles copies the pages that it would share.
_LIBC = ctypes.CDLL(None, use_errno=True)
_MACHINE = platform.machine()
_DEVICES = [str(path) for path in Path("/dev").iterdir() if path.name.startswith(_GPU_DEVICES)]


def enforce(*, reads: Iterable[str], directory: str) -> tuple[str, ...]:
    """Limits this thread, and those it starts, for good; returns what the kernel now enforces.

    `reads` are files (or directories) that stay readable, `directory` is the node's own. Unix sockets below it may be
    listened on; nothing may be dialled. A kernel that lacks a means gives less.

    Raises: `OSError` where the kernel has a means and refuses it.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file would hold the users' prompts
    if sys.platform != "linux":
        return ()
    _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return (*_landlock(tuple(reads), directory), *_seccomp(), NO_NEW_PRIVS)


def landlock_version() -> int:
    """The version of Landlock that the kernel speaks; 0 where there is none, or it is switched off."""
    if sys.platform != "linux":
        return 0
    try:
        return _syscall(_CREATE_RULESET, None, 0, _VERSION_FLAG)
    except OSError:
        return 0


def _landlock(reads: tuple[str, ...], directory: str) -> tuple[str, ...]:
    version = landlock_version()
    if not version:
        return ()
    handled = (1 << 13) - 1  # every right of version 1; the later ones follow
    handled |= (
        (_REFER if version >= 2 else 0) | (_TRUNCATE if version >= 3 else 0) | (_IOCTL_DEV if version >= 5 else 0)
    )
    net = _NET_BIND_TCP | _NET_CONNECT_TCP if version >= 4 else 0
    scope = _SCOPE_ABSTRACT_SOCKETS | _SCOPE_SIGNALS if version >= 6 else 0
    attributes = struct.pack("=QQQ", handled, net, scope)
    size = 24 if version >= 6 else 16 if version >= 4 else 8  # an older kernel knows a shorter structure
    ruleset = _syscall(_CREATE_RULESET, attributes[:size], size, 0)
    try:
        for path, rights in _rules(reads, directory):
            _allow(ruleset, path, rights & handled)
        _syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)
    return (LANDLOCK_FS, *([LANDLOCK_TCP] if net else []), *([LANDLOCK_SCOPE] if scope else []))


def _rules(reads: tuple[str, ...], directory: str) -> list[tuple[str, int]]:
    readable = (*reads, *ENGINE_READS, *(GPU_READS if _DEVICES else ()))
    written = ((directory, _OWN), ("/dev/null", _READ | _WRITE_FILE))
    return [*written, *((path, _READ) for path in readable), *((path, _DEVICE) for path in _DEVICES)]


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return  # it does not exist here, or is not ours to read anyway
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            rights &= _FILE_RIGHTS
        _syscall(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, struct.pack("=Qi", rights, fd), 0)
    finally:
        os.close(fd)


def _seccomp() -> tuple[str, ...]:
    """Denies what Landlock cannot: UDP and every other kind of socket, and dialling another node's socket."""
    known = _SYSCALLS.get(_MACHINE)
    if known is None:
        return ()
    code = _network_filter(*known)
    filter_code = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(filter_code))  # struct sock_fprog
    try:
        _call("prctl", _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, program, 0, 0)
    except OSError as error:
        if error.errno == errno.EINVAL:  # a kernel without filters
            return ()
        raise
    return (SECCOMP_NET,)


def _network_filter(arch: int, socket: int, connect: int, io_uring_setup: int) -> bytes:
    """A classic BPF program over `struct seccomp_data`: number at 0, architecture at 4, arguments of 8 bytes from 16.

    Jumps count the instructions to skip when the test holds and when it does not.
    """
    load, equal, at_least, mask, leave = 0x20, 0x15, 0x35, 0x54, 0x06
    allow, deny, kill = 0x7FFF0000, 0x00050000 | errno.EACCES, 0x80000000
    unix, stream, type_mask = 1, 1, 0xF
    program = (
        (load, 0, 0, 4),
        (equal, 1, 0, arch),  # numbers mean something else in another calling convention
        (leave, 0, 0, kill),
        (load, 0, 0, 0),
        (at_least, 9, 0, 0x40000000),  # x32's numbers, on x86-64
        (equal, 8, 0, connect),
        (equal, 7, 0, io_uring_setup),
        (equal, 0, 5, socket),
        (load, 0, 0, 16),
        (equal, 0, 4, unix),
        (load, 0, 0, 24),
        (mask, 0, 0, type_mask),
        (equal, 0, 1, stream),
        (leave, 0, 0, allow),
        (leave, 0, 0, deny),
    )
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in program)


def _syscall(number: int, *arguments: bytes | int | None) -> int:
    return _call("syscall", number, *arguments)


def _call(function: str, *arguments: bytes | int | None) -> int:
    # Whole words: a variadic function takes what is in the register.
    words = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _LIBC[function](*words)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{function}({arguments[0]!r}): {os.strerror(number)}")
    return result
