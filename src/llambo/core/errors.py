"""Every error that Llambo tells a caller about, with the codes that the outside relies on.

    LlamboError                 failed           1
    ├── BadRequest              bad_request      2    a value, command or argument is wrong
    │   ├── UnknownCommand      unknown_command  2
    │   ├── TooLarge            too_large        2    a line, frame or prompt over a byte limit
    │   ├── PromptTooLong       prompt_too_long  2    more tokens than the context holds
    │   └── BadConfig           bad_config       2
    ├── BadModel                bad_model        1    the file is missing, damaged or of another format
    │   └── NoMemory            no_memory        1    the model is sound but does not fit
    ├── NotFound                not_found        1    no model, request or node of that name
    │   └── NoModel             no_model         1    nothing is loaded that could answer
    ├── NameInUse               name_in_use      1
    ├── DownloadFailed          download_failed  1
    ├── NodeLost                node_lost        1    the process that was answering is gone
    ├── EngineFailed            engine_failed    1    the engine answered with a fault of its own
    ├── Diverged                diverged         1    a replayed answer parted from what was delivered
    ├── Unreachable             unreachable      3    nothing listens there, or it went away
    ├── Refused                 refused          4    authentication or permission
    ├── Overloaded              overloaded       5
    ├── TimedOut                timeout          5
    ├── NoQuorum                no_quorum        6    too few of the nodes that were asked agree
    └── Cancelled               cancelled        130

The first column is the class, then its `code` (stable, part of every protocol), then its `exit_status`. A message is
one plain sentence that says what was wrong and, where there is one, what would be right.
"""

from __future__ import annotations

from typing import ClassVar


class LlamboError(Exception):
    """Something failed; `code` and `exit_status` are the same at every door."""

    code: ClassVar[str] = "failed"
    exit_status: ClassVar[int] = 1

    @property
    def message(self) -> str:
        """The sentence for people."""
        return str(self.args[0]) if self.args else self.code


class BadRequest(LlamboError):
    """The caller's input is wrong; the same call cannot succeed."""

    code = "bad_request"
    exit_status = 2


class UnknownCommand(BadRequest):
    """The command does not exist; the message names those that do."""

    code = "unknown_command"


class TooLarge(BadRequest):
    """A line, frame or field is over its byte limit."""

    code = "too_large"


class PromptTooLong(BadRequest):
    """The prompt has more tokens than the context of a slot; the message gives both numbers."""

    code = "prompt_too_long"


class BadConfig(BadRequest):
    """The configuration is wrong; the message names file, line, key and what was expected."""

    code = "bad_config"


class BadModel(LlamboError):
    """The model file cannot be used."""

    code = "bad_model"


class NoMemory(BadModel):
    """The model needs more memory than is free; the message gives both numbers."""

    code = "no_memory"


class NotFound(LlamboError):
    """Nothing has that name."""

    code = "not_found"


class NoModel(NotFound):
    """No model is loaded that could answer."""

    code = "no_model"


class NameInUse(LlamboError):
    """The name is taken by something else."""

    code = "name_in_use"


class DownloadFailed(LlamboError):
    """A model could not be fetched; what had arrived is kept for the next try."""

    code = "download_failed"


class NodeLost(LlamboError):
    """The node that was answering ended before its answer did."""

    code = "node_lost"


class EngineFailed(LlamboError):
    """The engine failed although the request was sound; another node may do better."""

    code = "engine_failed"


class Diverged(LlamboError):
    """Another node took over and its answer differs from what was delivered already; the text ends there."""

    code = "diverged"


class Unreachable(LlamboError):
    """Nothing answers at that address."""

    code = "unreachable"
    exit_status = 3


class Refused(LlamboError):
    """The caller is not who may do this."""

    code = "refused"
    exit_status = 4


class Overloaded(LlamboError):
    """A limit on connections, requests or queue length is reached."""

    code = "overloaded"
    exit_status = 5


class TimedOut(LlamboError):
    """The answer did not come in time."""

    code = "timeout"
    exit_status = 5


class NoQuorum(LlamboError):
    """Too few of the nodes that were asked agree on one answer; the votes were told as they were cast."""

    code = "no_quorum"
    exit_status = 6


class Cancelled(LlamboError):
    """Somebody ended the request on purpose."""

    code = "cancelled"
    exit_status = 130


def _tree(base: type[LlamboError]) -> dict[str, type[LlamboError]]:
    found = {base.code: base}
    for child in base.__subclasses__():
        found |= _tree(child)
    return found


_BY_CODE = _tree(LlamboError)


def from_code(code: str, message: str) -> LlamboError:
    """The error that a peer reported, as the class of its `code`; an unknown code gives the base class."""
    return _BY_CODE.get(code, LlamboError)(message)
