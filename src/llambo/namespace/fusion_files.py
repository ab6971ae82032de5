"""`fusion/`: questions that several nodes answer together, what they said, and what came of it.

One directory for each identity that attaches: what one client sets, asks and is told is nobody else's business.
"""

from __future__ import annotations

from llambo.core.errors import BadRequest, Cancelled
from llambo.core.fusion import FusionRequest
from llambo.core.types import Message
from llambo.namespace import ctls, render
from llambo.namespace.answer import Answer, Answers
from llambo.namespace.ctl_file import CtlFile, Refusals
from llambo.namespace.data_file import DataFile
from llambo.namespace.grammar import Call
from llambo.namespace.settings import Settings
from llambo.ninep.files import StaticDirectory, TextFile, TextHandle
from llambo.ninep.tree import READABLE, Handle, Node


class FusionDirectory(StaticDirectory):
    """The directory of the identity `owner`; its `tally` and `last-result` tell of its sessions' fusions too."""

    def __init__(self, answers: Answers, owner: str, refusals: Refusals) -> None:
        fusions = _Fusions(answers, owner)
        super().__init__(
            "fusion",
            [
                CtlFile(ctls.FUSION, fusions.perform, refusals, fusions.text),
                DataFile(fusions.ask, refusals, fusions.timeout_s),
                TextFile("last-result", fusions.result),
                _Tally(fusions, refusals),
            ],
        )


class _Fusions:
    """The settings of one identity, and what it asked last."""

    def __init__(self, answers: Answers, owner: str) -> None:
        self._answers = answers
        self._owner = owner
        self.settings = Settings(fusion=FusionRequest())
        self.last = answers.last_fusion(owner)

    def perform(self, call: Call) -> None:
        """Performs one line of `fusion/ctl`."""
        changed = self.settings.changed(call)
        if changed.fusion is None:
            raise BadRequest("fusion off means nothing here: the file data of the root is answered by one node")
        self.settings = changed

    def text(self) -> str:
        """What a read of `fusion/ctl` gives."""
        return self.settings.text()

    def timeout_s(self) -> float:
        """What bounds each wait of a reader."""
        return self.settings.timeout_s

    def ask(self, prompt: str) -> Answer:
        """Begins the answer to a prompt."""
        return self._answers.start(self.settings.request(Message("user", prompt)), owner=self._owner)

    def result(self) -> bytes:
        """The document of what ended last, `null` before the first."""
        ended = self.last.ended
        if ended is None:
            return render.document_of(None)
        if ended.done is not None:
            return render.document_of(render.result(ended.text, ended.done))
        return render.document_of(render.failed(ended.error or Cancelled("it was cancelled"), ended.casts))


class _Tally(Node):
    """Every voter's answer as it comes, of the fusion that runs or ran last; empty before the first."""

    def __init__(self, fusions: _Fusions, refusals: Refusals) -> None:
        super().__init__("tally", READABLE)
        self._fusions = fusions
        self._refusals = refusals

    def open(self, mode: int) -> Handle:
        asked = self._fusions.last.asked
        if asked is None:
            return TextHandle(b"")
        return asked.tally(self._refusals.note, self._fusions.timeout_s)
