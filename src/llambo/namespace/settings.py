"""How answers are wanted: what lines of a ctl change, how it is read back, and the request that comes of it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from llambo.core.errors import BadRequest
from llambo.core.fusion import FusionRequest, strategy_named
from llambo.core.types import GenerateRequest, Message, Sampling
from llambo.namespace import ctls, render
from llambo.namespace.grammar import Call

MAX_TIMEOUT_S = 86_400


@dataclass(frozen=True, slots=True)
class Settings:
    """What a ctl sets. `timeout_s` bounds blocking reads, 0 does not; with `fusion` several nodes answer.

    With `raw` a prompt is sent as it is: without a template, and without what was said before.
    """

    sampling: Sampling = field(default_factory=Sampling)
    model: str = ""
    system: str = ""
    raw: bool = False
    fusion: FusionRequest | None = None
    timeout_s: float = 0.0

    def changed(self, call: Call) -> Settings:
        """These settings after a line of `ctls.SETTINGS`. Raises: `BadRequest` for a value out of range."""
        match call.command:
            case "max_tokens":
                return replace(self, sampling=replace(self.sampling, max_tokens=call.whole("n")))
            case "seed":
                return replace(self, sampling=replace(self.sampling, seed=call.whole("n")))
            case "temperature":
                return replace(self, sampling=replace(self.sampling, temperature=call.decimal("t")))
            case "top_p":
                return replace(self, sampling=replace(self.sampling, top_p=call.decimal("p")))
            case "model":
                return replace(self, model=call.text("m"))
            case "system":
                return replace(self, system=call.text("text"))
            case "raw":
                return replace(self, raw=call.is_on("on|off"))
            case "fusion":
                return replace(self, fusion=_fusion(call))
            case "timeout":
                return replace(self, timeout_s=_timeout_s(call))
            case command:
                raise AssertionError(f"the grammar let {command} through")

    def text(self) -> str:
        """What a read of the ctl gives: each setting that is not left to others, as the line that makes it."""
        sampling = self.sampling
        values: dict[str, object] = {
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "model": self.model or None,
            "system": self.system or None,
            "raw": "on" if self.raw else None,
        }
        lines = render.lines({key: value for key, value in values.items() if value is not None})
        if self.fusion is not None:
            lines += f"{_fusion_line(self.fusion)}\n"
        return lines + (render.lines({"timeout": self.timeout_s}) if self.timeout_s else "")

    def request(self, user: Message, earlier: Sequence[Message] = (), session: str = "") -> GenerateRequest:
        """What the door is asked when `user` says so after `earlier`. Raises: `BadRequest`."""
        if self.raw and self.system:
            raise BadRequest(
                "a raw prompt takes no system prompt: write raw off, or put the text into the prompt itself"
            )
        system = (Message("system", self.system),) if self.system else ()
        return GenerateRequest(
            messages=() if self.raw else (*system, *earlier, user),
            raw_prompt=user.content if self.raw else None,
            model=self.model,
            sampling=self.sampling,
            session=session,
            fusion=self.fusion,
            interface="styx",
        )


def _timeout_s(call: Call) -> float:
    seconds = call.decimal("s")
    if not 0 <= seconds <= MAX_TIMEOUT_S:
        raise BadRequest(f"timeout must be between 0 and {MAX_TIMEOUT_S} seconds, not {seconds:g}")
    return seconds


def _fusion(call: Call) -> FusionRequest | None:
    name = call.text(ctls.STRATEGY)
    if name == "off":
        if len(call.values) > 1:
            raise BadRequest("fusion off takes nothing more; write: fusion off")
        return None
    strategy = strategy_named(name) if name else ""
    return FusionRequest(strategy, call.whole("n"), call.whole("min_consensus"), call.text("extract"))


def _fusion_line(wanted: FusionRequest) -> str:
    return ctls.FUSING.line(
        **{ctls.STRATEGY: wanted.strategy}, n=wanted.voters, min_consensus=wanted.min_consensus, extract=wanted.extract
    )
