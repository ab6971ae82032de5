"""The grammars of every ctl file of the tree. Tables: who performs a command looks it up here. Pure."""

from __future__ import annotations

from llambo.namespace.grammar import Argument, Command, Grammar

_NODE = Argument("ID")
_MODEL = Argument("MODEL")
_PATH = Argument("PATH", is_optional=True)

CLUSTER = Grammar(
    "ctl",
    (
        Command(
            "spawn",
            (
                Argument("N", "whole"),
                Argument("TYPE", is_optional=True),
                Argument("REF", key="model"),
                Argument("S", "whole", key="slots"),
            ),
            "starts N nodes; answers their ids",
        ),
        Command(
            "scale",
            (Argument("N", "whole"), Argument("MODEL", is_optional=True)),
            "makes it N nodes that serve the model; answers the ids of all nodes",
        ),
        Command(
            "attach",
            (
                Argument("URL"),
                Argument("TYPE", is_optional=True),
                Argument("KEY", key="key"),
                Argument("VAR", key="key_env"),
            ),
            "takes in a running server as a node; answers its id. KEY is kept in memory and shown nowhere",
        ),
        Command("detach", (_NODE,), "lets an attached node finish, then forgets it"),
        Command("drain", (_NODE,), "lets a node finish what it is doing, then ends it"),
        Command("kill", (_NODE,), "ends a node now; its answers go on elsewhere"),
        Command("restart", (_NODE,), "gives a node a new process"),
        Command("pin", (_MODEL,), "keeps a model from being unloaded to make room"),
        Command("unpin", (_MODEL,), "lets a model be unloaded to make room"),
        Command("balancer", (Argument("STRATEGY"),), "balances so from now on"),
        Command("checkpoint", (_PATH,), "saves the state of the cluster; answers where"),
        Command("restore", (_PATH,), "brings back what a checkpoint holds, beside what there is"),
        Command("shutdown", (), "stops the cluster"),
    ),
)

STRATEGY = "strategy|off"
"""By what name a `Call` of `FUSING` has its strategy."""

FUSING = Command(
    "fusion",
    (
        Argument("STRATEGY|off", is_optional=True),
        Argument("N", "whole", is_optional=True),
        Argument("K", "whole", key="min_consensus"),
        Argument("RE", key="extract"),
    ),
    "N nodes answer each prompt, and one answer comes out; what is left out, the configuration says",
)

SETTINGS = (
    Command("max_tokens", (Argument("N", "whole"),), "longest answer, in tokens"),
    Command("temperature", (Argument("T", "decimal"),), "0 always takes the likeliest token"),
    Command("top_p", (Argument("P", "decimal"),), "share of likelihood to choose from"),
    Command("seed", (Argument("N", "whole"),), "makes a sampled answer repeatable"),
    Command("model", (Argument("M"),), "which model answers"),
    Command("system", (Argument("TEXT", "rest"),), "the system prompt"),
    Command(
        "raw",
        (Argument("on|off", "switch"),),
        "on: prompts are sent as they are, without a template and what was said before",
    ),
    FUSING,
    Command("timeout", (Argument("S", "decimal"),), "bounds blocking reads, in seconds; 0: no bound"),
)
"""How answers are wanted, wherever that can be said."""

SESSION = Grammar(
    "sessions/N/ctl",
    (
        *SETTINGS,
        Command("send", (), "sends the prompt; its answer is in stream and reply"),
        Command("cancel", (), "ends the answer; what has arrived is kept"),
        Command("clear", (), "forgets the conversation and the prompt"),
        Command("keep", (), "outlives the fid that made it, until it is idle for long"),
        Command("hangup", (), "ends the session"),
    ),
)

FUSION = Grammar("fusion/ctl", SETTINGS)

NODE = Grammar(
    "nodes/ID/ctl",
    (
        Command("drain", (), "lets it finish what it is doing, then ends it"),
        Command("kill", (), "ends it now; its answers go on elsewhere"),
        Command("restart", (), "gives it a new process"),
        Command("load", (Argument("REF"),), "starts a node of its type with that model, then drains it"),
        Command("free", (), "gives its memory back now, which ends it; its answers go on elsewhere"),
    ),
)

MODELS = Grammar(
    "models/ctl",
    (Command("pull", (Argument("REF"),), "fetches a model; its progress is in models/NAME/status"),),
)

MODEL = Grammar(
    "models/NAME/ctl",
    (
        Command("load", (), "starts a node for it where none serves it"),
        Command("unload", (), "ends its nodes"),
        Command("pin", (), "keeps it from being unloaded to make room"),
        Command("unpin", (), "lets it be unloaded to make room"),
    ),
)

GRAMMARS = (CLUSTER, SESSION, FUSION, NODE, MODELS, MODEL)
