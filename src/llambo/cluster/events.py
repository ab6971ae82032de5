"""What the orchestrator is told (events, past tense) and what it answers (commands, imperative).

The runtime and the simulator speak these and nothing else with it. Pure data.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from llambo.cluster.state import GENERATE, Route
from llambo.core.types import LoadOptions

# --- events -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ModelAdded:
    """A model may be asked for from now on; `options` and `type` are for nodes that are started for it on demand."""

    name: str
    options: LoadOptions
    type: str = ""
    pinned: bool = False
    attached: bool = False


@dataclass(frozen=True, slots=True)
class ModelRemoved:
    """A model is wanted no more: its nodes end at once."""

    name: str
    reason: str = "its model was freed"


@dataclass(frozen=True, slots=True)
class ModelUnloaded:
    """A model makes room for another: its nodes end, it stays known, and comes back when it is asked for."""

    name: str


@dataclass(frozen=True, slots=True)
class ModelPinned:
    """A model may not (or may) be unloaded to make room."""

    name: str
    pinned: bool


@dataclass(frozen=True, slots=True)
class NodeWanted:
    """A node is to start; `id` "" takes the next number, `kinds` is what it will do.

    `is_known` for one that served before a restart: should it not start, it is tried again later, not forgotten.
    `is_on_demand` for one that nobody ordered: other models may be unloaded for it.
    """

    model: str
    type: str
    options: LoadOptions
    launcher: str = "local"
    kinds: frozenset[str] = frozenset({GENERATE})
    id: str = ""
    is_known: bool = False
    is_on_demand: bool = False


@dataclass(frozen=True, slots=True)
class NumbersTaken:
    """Node numbers up to this one belong to nodes of before, also to those that could not be brought back."""

    highest: int


@dataclass(frozen=True, slots=True)
class NodeStarted:
    """A node's engine answers; `slots`, `ctx` and `kinds` are what it says of itself."""

    node: str
    epoch: int
    slots: int
    ctx: int
    kinds: frozenset[str] | None = None
    likeness: str = ""  # nodes of one likeness answer the probe alike


@dataclass(frozen=True, slots=True)
class NodeStartFailed:
    """A node could not be started."""

    node: str
    epoch: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class NodeEnded:
    """A node's process is gone without having been told to go."""

    node: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class NodeStopped:
    """What `StopNode` asked for is done."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ProbeAnswered:
    """A node passed its check; `answer` is its text where the check was end to end."""

    node: str
    epoch: int
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """A node did not answer its check."""

    node: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class RequestArrived:
    """A request wants a node."""

    route: Route


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """A request ended well. `chain` covers its prompt and its answer; `decode_s` is the time its tokens took
    the node (0: not told)."""

    id: int
    tokens: int = 0
    decode_s: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    chain: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestBroken:
    """The node failed a request: it was "lost", the engine "failed", or the prompt was "too_long" for its context."""

    id: int
    kind: Literal["lost", "failed", "too_long"]
    code: str
    message: str
    has_delivered: bool = False


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """A request ended with an error that no other node could mend."""

    id: int


@dataclass(frozen=True, slots=True)
class RequestGone:
    """The caller went away."""

    id: int


@dataclass(frozen=True, slots=True)
class ScaleWanted:
    """A model is to have `count` nodes for answers; those that start are of `type`."""

    model: str
    count: int


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """A node is to finish and end."""

    node: str


@dataclass(frozen=True, slots=True)
class KillWanted:
    """A node is to end now."""

    node: str
    reason: str = "it was killed on command"


@dataclass(frozen=True, slots=True)
class RestartWanted:
    """A node's process is to be replaced by a new one."""

    node: str


@dataclass(frozen=True, slots=True)
class StrategyChosen:
    """Requests are to be spread in another way."""

    strategy: str


@dataclass(frozen=True, slots=True)
class ConversationsMoved:
    """The cache of a draining node is with another one now (or could not be moved: `moved` 0)."""

    source: str
    target: str
    moved: int


@dataclass(frozen=True, slots=True)
class Ticked:
    """Time has passed."""


Event = (
    ModelAdded
    | ModelRemoved
    | ModelUnloaded
    | ModelPinned
    | NodeWanted
    | NumbersTaken
    | NodeStarted
    | NodeStartFailed
    | NodeEnded
    | NodeStopped
    | ProbeAnswered
    | ProbeFailed
    | RequestArrived
    | RequestFinished
    | RequestBroken
    | RequestFailed
    | RequestGone
    | ScaleWanted
    | DrainWanted
    | KillWanted
    | RestartWanted
    | StrategyChosen
    | ConversationsMoved
    | Ticked
)

# --- commands -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartNode:
    """Start the process of a node, then say `NodeStarted` or `NodeStartFailed`."""

    node: str
    epoch: int


@dataclass(frozen=True, slots=True)
class StopNode:
    """End the process of a node, then say `NodeStopped`."""

    node: str
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True)
class ProbeNode:
    """Check a node, then say `ProbeAnswered` or `ProbeFailed`; end to end is a short answer to a fixed prompt."""

    node: str
    epoch: int
    end_to_end: bool


@dataclass(frozen=True, slots=True)
class PlaceRequest:
    """Run the request on that node; its slot is taken until the request is finished, broken, failed or gone."""

    id: int
    node: str
    epoch: int


@dataclass(frozen=True, slots=True)
class RefuseRequest:
    """End the request with that error."""

    id: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class MoveConversations:
    """Hand the source's warm slots to the target, then say `ConversationsMoved`."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class TellNodeReady:
    """Whoever waits for this node may go on."""

    node: str


@dataclass(frozen=True, slots=True)
class TellNodeGone:
    """The node is no more; whoever waits for it gets the error, or, without a code, what they waited for."""

    node: str
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Publish:
    """Tell those who watch."""

    kind: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SaveCheckpoint:
    """What a restart restores has changed."""


Command = (
    StartNode
    | StopNode
    | ProbeNode
    | PlaceRequest
    | RefuseRequest
    | MoveConversations
    | TellNodeReady
    | TellNodeGone
    | Publish
    | SaveCheckpoint
)
