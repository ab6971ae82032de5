"""What is asked of the cluster and what comes back: the vocabulary that every interface shares.

Pure data. One request type for chat and completion, one kind of stream for every answer: token events (with fusion the
votes as they are cast, then the chosen answer), then exactly one terminal event (`Done`; a failure is a raised
`LlamboError`, cancellation is the reader closing the stream or a `Done` whose `finish_reason` is `"cancelled"`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from llambo.core.errors import BadRequest
from llambo.core.fusion import Fusion, FusionRequest, VoteCast

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled"]

MAX_TOKENS_LIMIT = 1_048_576
MAX_TEMPERATURE = 5.0
MAX_SEED = 2**32 - 2  # 2**32 - 1 is llama.cpp's word for "choose one"


def check_unicode(what: str, text: str) -> None:
    """Refuses what cannot be sent as UTF-8: half characters, as they come of undecodable bytes on a command line.

    Raises: `BadRequest`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRequest(f"{what} is not valid Unicode text (position {error.start})") from None


def as_text(words: str) -> str:
    """The words without half characters, which those of a system may hold (a file's name) and no reply can carry."""
    return words.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        check_unicode("a message", self.content)


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen; `None` leaves the choice to the engine (llama.cpp's defaults).

    Raises: `BadRequest` for a value out of range. Nothing is ever clamped.
    """

    max_tokens: int | None = None  # None: until the model ends or the context is full
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_range("max_tokens", self.max_tokens, 1, MAX_TOKENS_LIMIT)
        _check_range("temperature", self.temperature, 0.0, MAX_TEMPERATURE)
        _check_range("top_p", self.top_p, 0.0, 1.0)
        _check_range("seed", self.seed, 0, MAX_SEED)


def _check_range(name: str, value: float | None, low: float, high: float) -> None:
    # Written so that NaN, which compares false with everything, is refused too.
    if value is not None and not low <= value <= high:
        raise BadRequest(f"{name} must be between {low} and {high}, not {value}")


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """One answer wanted from one model.

    `messages` go through the model's chat template where it has one; `raw_prompt` is sent bare. Exactly one is set.
    `model` names a loaded model, "" the default one. `logprobs` asks for each token's log-probability.

    The answer ends before any text of `stop`. `grammar` (GBNF) or `json_schema` (a JSON Schema as text), at most one,
    bounds what it may be. Requests of one `session` share a place in the queue's rotation and, where they can, a node.
    `node_type` wants a node of that type, "" any. `fusion` asks several nodes for one answer. `interface` is who asks,
    for the metrics.
    """

    messages: tuple[Message, ...] = ()
    raw_prompt: str | None = None
    model: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    logprobs: bool = False
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    session: str = ""
    node_type: str = ""
    fusion: FusionRequest | None = None
    interface: str = field(default="python", compare=False)

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.raw_prompt is not None):
            raise BadRequest("give either messages or raw_prompt, and not both")
        if self.grammar and self.json_schema:
            raise BadRequest("give either a grammar or a JSON schema, and not both")
        check_unicode("the prompt", self.raw_prompt or "")
        for text in (*self.stop, self.grammar, self.json_schema):
            check_unicode("a stop text, grammar or JSON schema", text)

    @classmethod
    def from_prompt(
        cls, prompt: str, *, raw: bool = False, system: str = "", model: str = "", sampling: Sampling | None = None
    ) -> GenerateRequest:
        """The request for one user prompt; `raw` sends it without a template (then `system` must be empty)."""
        sampling = sampling or Sampling()
        if raw:
            if system:
                raise BadRequest("a raw prompt takes no system prompt: put the text into the prompt itself")
            return cls(raw_prompt=prompt, model=model, sampling=sampling)
        messages = (Message("system", system),) if system else ()
        return cls(messages=(*messages, Message("user", prompt)), model=model, sampling=sampling)


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """A piece of the answer: usually one token; several ids where a character spans tokens."""

    text: str
    ids: tuple[int, ...] = ()
    logprob: float | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The end of an answer, with its counts. Times in milliseconds from the request's arrival at the cluster door."""

    finish_reason: FinishReason
    model: str
    node: str
    tokens: int
    prompt_tokens: int
    cached_tokens: int
    ttft_ms: float
    time_ms: float
    failovers: int = 0  # how often another node took over
    fusion: Fusion | None = None  # how the answer was agreed on, when several nodes were asked


Event = TokenEvent | VoteCast | Done


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How a model is loaded; 0 leaves the choice to the configuration.

    `ctx` is tokens per slot, `slots` the number of parallel sequences, `gpu_layers` -1 for as many as fit.
    `threads_by_default` says that nobody asked for that number: nodes that share a machine may get fewer.

    Raises: `BadRequest` for a value out of range.
    """

    ctx: int = 0
    slots: int = 0
    threads: int = 0
    gpu_layers: int = -1
    threads_by_default: bool = False

    def __post_init__(self) -> None:
        _check_range("ctx", self.ctx, 0, 2**24)
        _check_range("slots", self.slots, 0, 256)
        _check_range("threads", self.threads, 0, 1024)
        _check_range("gpu_layers", self.gpu_layers, -1, 10_000)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A loaded model. `state` is "ready", "loading", "restarting" or "failed: REASON"."""

    name: str
    path: str
    state: str
    ctx: int
    slots: int
    busy: int
    node: str
    pid: int
    is_default: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """Totals since the door opened."""

    requests: int = 0
    tokens: int = 0
    errors: int = 0
