"""What a client can ask of a bridge: one set of commands, one validation and one table of rights for both protocols.

Knows nothing of lines, frames, sockets or models. `text` and `binary` turn bytes into the typed fields that stand here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from llambo.core.errors import BadRequest, Refused, UnknownCommand
from llambo.core.fusion import FusionRequest, fusion_asked
from llambo.core.tokens import Scope
from llambo.core.types import GenerateRequest, LoadOptions, Message, Sampling

PROTOCOL_VERSION = 2
MAX_PROMPTS = 256
AUTHENTICATE_FIRST = "authenticate first: AUTH TOKEN"


@dataclass(frozen=True, slots=True)
class Ping:
    """Is anybody there?"""


@dataclass(frozen=True, slots=True)
class Status:
    """Models, slots and totals."""


@dataclass(frozen=True, slots=True)
class Models:
    """The loaded models, the default one first."""


@dataclass(frozen=True, slots=True)
class Load:
    """Load the model that `path` refers to, as `name` ("" derives one)."""

    path: str
    name: str = ""
    options: LoadOptions = field(default_factory=LoadOptions)


@dataclass(frozen=True, slots=True)
class Free:
    """End a model, "" the default one."""

    name: str = ""


@dataclass(frozen=True, slots=True)
class Infer:
    """One answer, given whole."""

    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class InferStream:
    """One answer, given token by token."""

    request: GenerateRequest


@dataclass(frozen=True, slots=True)
class InferMulti:
    """Several answers at once, given whole and in order."""

    requests: tuple[GenerateRequest, ...]


@dataclass(frozen=True, slots=True)
class Tokenize:
    """The token ids of a text."""

    text: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Embed:
    """The embedding of a text."""

    text: str
    model: str = ""


@dataclass(frozen=True, slots=True)
class Cancel:
    """End a request: by its public id, by the client's own (binary), or "" for what this connection waits for."""

    target: int | str = ""


@dataclass(frozen=True, slots=True)
class Auth:
    """Prove the right to use a listener."""

    token: str

    def __repr__(self) -> str:
        """Without the secret, so that no log can show it."""
        return "Auth(...)"


@dataclass(frozen=True, slots=True)
class Hello:
    """Change to the binary protocol."""

    version: int


@dataclass(frozen=True, slots=True)
class Quit:
    """Drain and stop the bridge."""


Command = (
    Ping
    | Status
    | Models
    | Load
    | Free
    | Infer
    | InferStream
    | InferMulti
    | Tokenize
    | Embed
    | Cancel
    | Auth
    | Hello
    | Quit
)

# In the order in which people read them; the least scope that may use each.
LEAST_SCOPE: dict[type[Command], Scope] = {
    Ping: "read",
    Status: "read",
    Models: "read",
    Load: "admin",
    Free: "admin",
    Infer: "infer",
    InferStream: "infer",
    InferMulti: "infer",
    Tokenize: "infer",
    Embed: "infer",
    Cancel: "infer",
    Auth: "read",
    Hello: "read",
    Quit: "admin",
}
NAMES: dict[type[Command], str] = {
    Infer: "INFER",
    InferStream: "INFER_STREAM",
    InferMulti: "INFER_MULTI",
} | {kind: kind.__name__.upper() for kind in LEAST_SCOPE if kind not in (InferStream, InferMulti)}
_BY_NAME = {NAMES[kind]: kind for kind in LEAST_SCOPE}
_RANK: dict[Scope, int] = {"read": 0, "infer": 1, "admin": 2}


def command_type(name: str) -> type[Command]:
    """The command of that name, in upper case.

    Raises: `UnknownCommand`, naming those that exist.
    """
    kind = _BY_NAME.get(name)
    if kind is None:
        raise UnknownCommand(f"unknown command {name[:40]!r}; known are {' '.join(_BY_NAME)}")
    return kind


def check_scope(command: Command, scope: Scope | None) -> None:
    """Passes when a client with `scope` (None: not authenticated) may use the command.

    Raises: `Refused`.
    """
    if scope is None:
        if not isinstance(command, Auth):
            raise Refused(AUTHENTICATE_FIRST)
        return
    least = LEAST_SCOPE[type(command)]
    if _RANK[scope] < _RANK[least]:
        raise Refused(f"{NAMES[type(command)]} needs a token of scope {least}; this one has scope {scope}")


def check_text(what: str, text: str) -> str:
    """The text itself, when an engine can take it.

    Raises: `BadRequest` when it is empty, holds a NUL or cannot be written as UTF-8.
    """
    if not text:
        raise BadRequest(f"the {what} is empty: put some text after the command and its options")
    if "\0" in text:
        raise BadRequest(f"the {what} holds a NUL byte")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(f"the {what} is not valid Unicode text") from None
    return text


@dataclass(frozen=True, slots=True)
class Ask:
    """The fields of INFER, INFER_STREAM and INFER_MULTI as a client gives them; `one` and `many` check them."""

    prompt: str | None = None
    prompts: tuple[str, ...] | None = None
    messages: tuple[Message, ...] | None = None
    system: str = ""
    raw: bool = False
    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    logprobs: bool = False
    stop: tuple[str, ...] = ()
    grammar: str = ""
    json_schema: str = ""
    session: str = ""
    node_type: str = ""
    fusion: str | None = None  # "" for the configured strategy
    nodes: int | None = None
    min_consensus: int | None = None
    extract: str = ""

    def one(self) -> GenerateRequest:
        """The request for `prompt` or `messages`.

        Raises: `BadRequest`.
        """
        if self.prompts is not None:
            raise BadRequest("prompts belong to INFER_MULTI: give prompt or messages here")
        if self.messages is None:
            return self._of_prompt("prompt", self.prompt or "", self._system())
        if self.prompt is not None:
            raise BadRequest("give either prompt or messages, and not both")
        if self.raw:
            raise BadRequest("messages always go through the template: raw needs prompt")
        if not self.messages:
            raise BadRequest("messages is empty: give at least one")
        for message in self.messages:
            if "\0" in message.content:
                raise BadRequest("a message holds a NUL byte")
        return self._of_messages((*self._system(), *self.messages))

    def many(self) -> tuple[GenerateRequest, ...]:
        """The requests for `prompts`.

        Raises: `BadRequest`.
        """
        if self.prompt is not None or self.messages is not None:
            raise BadRequest("INFER_MULTI takes prompts only")
        if self._fusion() is not None:
            raise BadRequest("fusion goes with INFER and INFER_STREAM: INFER_MULTI asks one node for each prompt")
        if not self.prompts:
            raise BadRequest("the prompt is empty: give prompts, separated by ||")
        if len(self.prompts) > MAX_PROMPTS:
            raise BadRequest(f"{len(self.prompts)} prompts are too many: at most {MAX_PROMPTS}")
        system = self._system()  # once: it may be large, and the prompts many
        return tuple(self._of_prompt(f"prompt {n}", text, system) for n, text in enumerate(self.prompts, 1))

    def _system(self) -> tuple[Message, ...]:
        return (Message("system", check_text("system prompt", self.system)),) if self.system else ()

    def _of_prompt(self, what: str, prompt: str, system: tuple[Message, ...]) -> GenerateRequest:
        check_text(what, prompt)
        if not self.raw:
            return self._of_messages((*system, Message("user", prompt)))
        return self._request(GenerateRequest.from_prompt(prompt, raw=True, system=self.system))

    def _of_messages(self, messages: tuple[Message, ...]) -> GenerateRequest:
        return self._request(GenerateRequest(messages=messages))

    def _request(self, bare: GenerateRequest) -> GenerateRequest:
        return replace(
            bare,
            model=self.model,
            sampling=self._sampling(),
            logprobs=self.logprobs,
            stop=self.stop,
            grammar=self.grammar,
            json_schema=self.json_schema,
            session=self.session,
            node_type=self.node_type,
            fusion=self._fusion(),
            interface="bridge",
        )

    def _sampling(self) -> Sampling:
        return Sampling(self.max_tokens, self.temperature, self.top_p, self.seed)

    def _fusion(self) -> FusionRequest | None:
        """What several nodes are asked to do, None where one is asked."""
        belongs = {"nodes": self.nodes, "min_consensus": self.min_consensus, "extract": self.extract or None}
        if self.fusion is None:
            for name, value in belongs.items():
                if value is not None:
                    raise BadRequest(f"{name} says how several nodes answer: give fusion too, such as majority-vote")
            return None
        return fusion_asked(self.fusion, self.nodes, self.min_consensus, self.extract)


def build_load(path: str, name: str, options: LoadOptions) -> Load:
    """LOAD with a path that a file system can take.

    Raises: `BadRequest`.
    """
    return Load(check_text("path", path), name, options)


def build_hello(version: int) -> Hello:
    """HELLO for a version that this bridge speaks.

    Raises: `BadRequest`.
    """
    if version != PROTOCOL_VERSION:
        raise BadRequest(f"HELLO {version}: this bridge speaks protocol {PROTOCOL_VERSION}")
    return Hello(version)
