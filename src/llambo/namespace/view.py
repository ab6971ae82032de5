"""The tree that one client sees: what its rights do not reach is not there at all."""

from __future__ import annotations

from llambo.core.tokens import Scope
from llambo.core.types import Message
from llambo.namespace import commands, ctls, render
from llambo.namespace.ctl_file import CtlFile, Refusals
from llambo.namespace.data_file import DataFile
from llambo.namespace.fusion_files import FusionDirectory
from llambo.namespace.house import House
from llambo.namespace.model_files import ModelsDirectory
from llambo.namespace.node_files import NodesDirectory
from llambo.namespace.session_files import Clone, SessionDirectory
from llambo.namespace.settings import Settings
from llambo.ninep.files import LiveDirectory, StaticDirectory, TextFile
from llambo.ninep.streams import StreamFile
from llambo.ninep.tree import Node

RANK: dict[Scope, int] = {"read": 0, "infer": 1, "admin": 2}
"""Each scope may do what those below it may."""


class View(StaticDirectory):
    """The root for clients of one identity: `owner` is whose sessions they see ("" the socket's owner), with `scope`.

    What is read is there for `read`, conversations for `infer`, control and everybody's sessions for `admin`.
    """

    def __init__(self, house: House, scope: Scope, owner: str) -> None:
        super().__init__("/")
        rank = RANK[scope]
        may_control = rank >= RANK["admin"]
        self.refusals = Refusals()
        if may_control:
            perform = CtlFile(ctls.CLUSTER, lambda call: commands.perform(house, call), self.refusals)
            self.add(perform)
        for node in self._looks(house, may_control):
            self.add(node)
        if rank >= RANK["infer"]:
            for node in self._conversations(house, None if may_control else owner, owner):
                self.add(node)

    def _looks(self, house: House, may_control: bool) -> list[Node]:
        control = house.control

        def status_json() -> bytes:
            nodes = [house.look.node_info(node_id) for node_id in house.look.node_ids()]
            return render.status_json(control.cluster_status(), house.facts(), nodes, control.balancer_stats())

        async def nodes_json() -> bytes:
            return render.document_of(await control.nodes())

        looks: list[Node] = [
            TextFile("status", lambda: render.status(control.cluster_status(), house.facts())),
            TextFile("status.json", status_json),
            TextFile("nodes.json", nodes_json),
            TextFile("metrics", control.metrics),
            TextFile("config", house.config),
            StreamFile("events", house.events.open),
            self.refusals.file(),
            NodesDirectory(house, self.refusals, may_control=may_control),
            ModelsDirectory(house, self.refusals, may_control=may_control),
        ]
        if may_control:
            looks.append(TextFile("checkpoint", lambda: render.document_of(control.checkpoint())))
        return looks

    def _conversations(self, house: House, seen: str | None, owner: str) -> list[Node]:
        def make(name: str) -> Node:
            return SessionDirectory(house.sessions.by_name[name], self.refusals)

        sessions = LiveDirectory("sessions", lambda: house.sessions.of(seen), make, perm=0o777)
        return [
            DataFile(lambda prompt: house.answers.start(Settings().request(Message("user", prompt))), self.refusals),
            FusionDirectory(house.answers, owner, self.refusals),
            Clone(house.sessions, owner, sessions, self.refusals),
            sessions,
        ]
