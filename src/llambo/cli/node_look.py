"""The nodes of a cluster in this process, as the namespace looks at them: nothing is measured, and nobody waits."""

from __future__ import annotations

from collections.abc import Mapping

from llambo.cluster.api import Cluster
from llambo.cluster.control import NodeInfo


class ClusterLook:
    """`namespace.house.NodeLook` of a cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def ids(self) -> Mapping[str, object]:
        """Every node by its id."""
        return self._cluster._world.nodes

    def info(self, node_id: str) -> NodeInfo:
        """One node. Raises: `KeyError`."""
        found = self._cluster._node_infos([node_id])
        if not found:
            raise KeyError(node_id)
        return found[0]
