"""What a node is told at its birth, and what it and its zygote say: the lines of their private protocol.

Launcher to zygote, one JSON object a line on standard input: `{"spawn": NodeSpec}` or `{"signal": N, "name": NAME}`.
Zygote and nodes to launcher, on standard output (each line under PIPE_BUF, so that writers never mix):

    {"event": "up", "pid"}                                   the zygote has imported the engine
    {"event": "broken", "message"}                           it cannot, and ends
    {"event": "started", "name", "pid"}                      a node was forked
    {"event": "unforked", "name", "message"}                 the system would not make the process
    {"event": "ready", "name", "pid", "address", "sandbox",
     "backend"}                                              its engine answers at `address`
    {"event": "unbacked", "name", "message", "lasts"}        its backend cannot be loaded: the wheel's own serves
    {"event": "refused", "name", "message"}                  its engine would not load the model; it ends
    {"event": "failed", "name", "message"}                   the system refused what it needs; it ends
    {"event": "exited", "name", "pid", "status"}             it is gone; status as `subprocess` has it: -9 is SIGKILL

`sandbox` lists what the kernel enforces on the node (see `sandbox`), `backend` names what it computes with ("": the
wheel's own).
"""

from __future__ import annotations

from dataclasses import dataclass

SOCKET_NAME = "node.sock"
SLOTS_NAME = "slots"
LINE_MAX = 4096
"""PIPE_BUF on Linux: a write up to this length is atomic."""


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node to start. `ctx` is tokens per slot; `threads` 0 leaves the number to the engine.

    `threads_by_default` says that nobody asked for that number: it may be shared with other nodes, and measured, up to
    `most_threads`, which it was before.

    `directory` is private to the node: its working directory, the home of its socket and of its slots' files.
    `embedding` and `reranking` nodes pool; `alias` is what the engine calls its model in replies, "" for its path.
    `batch` is how many tokens one pass computes, `cache_mib` the memory for idle conversations. `backend` is the
    directory of a built CPU backend ("": the wheel's own) and `library_sha256` the checksum of the library in it that
    is meant; `cpus` are the cores that it may run on (empty: all). `niceness` is added to our own.
    """

    name: str
    directory: str
    log_path: str
    model_path: str
    ctx: int
    slots: int
    threads: int = 0
    gpu_layers: int = -1
    embedding: bool = False
    reranking: bool = False
    alias: str = ""
    batch: int = 512
    cache_mib: int = 256
    backend: str = ""
    library_sha256: str = ""
    flash_attention: str = "auto"
    numa: str = ""
    cpus: tuple[int, ...] = ()
    threads_by_default: bool = True
    most_threads: int = 0
    niceness: int = 0

    @property
    def pools(self) -> bool:
        """Whether the engine makes one result of a whole text."""
        return self.embedding or self.reranking

    @property
    def socket_path(self) -> str:
        """Where the engine's HTTP server will listen."""
        return f"{self.directory}/{SOCKET_NAME}"

    @property
    def slots_path(self) -> str:
        """The directory of saved slots."""
        return f"{self.directory}/{SLOTS_NAME}"
