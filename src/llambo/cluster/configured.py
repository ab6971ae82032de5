"""What the configuration means for those who know nothing of it: the orchestrator's policy, the runtime's limits."""

from __future__ import annotations

from llambo.cluster.autoscaler import ScalePolicy
from llambo.cluster.runtime import Limits
from llambo.cluster.world import Policy
from llambo.core.config import Settings


def policy(settings: Settings) -> Policy:
    """What the orchestrator decides by."""
    balancer, scaling = settings.load_balancer, settings.orchestrator
    return Policy(
        strategy=balancer.strategy,
        auto_scale=scaling.auto_scale,
        scale=ScalePolicy(
            scaling.scale_up_threshold,
            scaling.scale_down_threshold,
            scaling.scale_factor,
            scaling.min_nodes,
            scaling.max_nodes,
            scaling.cool_down,
        ),
        queue_limit=scaling.queue_limit,
        queue_timeout_s=scaling.queue_timeout,
        max_retries=balancer.max_retries,
        health_interval_s=balancer.health_check_interval,
        health_failures=balancer.health_check_failures,
        probe_interval_s=balancer.probe_interval,
    )


def limits(settings: Settings) -> Limits:
    """How long the runtime waits."""
    balancer = settings.load_balancer
    return Limits(settings.cluster.start_timeout, balancer.timeout, balancer.health_check_timeout)
