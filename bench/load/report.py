"""What a run's outcomes come to: counts, percentiles, rates; as JSON and as lines for people.

Pure. A percentile of nothing is None, never 0.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.load.wire import Outcome


@dataclass(frozen=True, slots=True)
class Summary:
    """Figures of one run; times in milliseconds unless the name says otherwise.

    `by_status` has what the server answered ("none" where no status came), `by_reason` why requests failed, `examples`
    one message for each reason. Latencies count from the planned moment, over successful requests. `tokens_per_s` is
    over the whole run, `stream_tokens_per_s` the median of the requests' own rates after their first token.
    `client_late` is how late this generator was to send, `client_cpu_us_per_token` what a token cost it.
    """

    requests: int
    ok: int
    failed: int
    by_status: dict[str, int]
    by_reason: dict[str, int]
    examples: dict[str, str]
    ttft: dict[str, float | None]
    inter_token: dict[str, float | None]
    latency: dict[str, float | None]
    tokens: int
    counted_tokens: int
    tokens_per_s: float
    stream_tokens_per_s: float | None
    duration_s: float
    client_late: dict[str, float | None]
    client_cpu_us_per_token: float | None

    def document(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self)

    def lines(self) -> str:
        """All of it, for people."""
        reasons = [f"  {name}: {count} ({self.examples[name]})" for name, count in self.by_reason.items()]
        statuses = ", ".join(f"{count} x {status}" for status, count in self.by_status.items())
        cost = "-" if self.client_cpu_us_per_token is None else f"{self.client_cpu_us_per_token:.1f} us"
        each = "-" if self.stream_tokens_per_s is None else f"{self.stream_tokens_per_s:.1f}"
        rows = [
            f"requests     {self.ok} of {self.requests} ok, {self.failed} failed; status {statuses or '-'}",
            *reasons,
            f"first token  {_row(self.ttft)}",
            f"inter-token  {_row(self.inter_token)}",
            f"whole reply  {_row(self.latency)}",
            f"tokens       {self.tokens} in {self.duration_s:.2f} s: {self.tokens_per_s:.1f}/s, {each}/s in a stream",
            f"this client  {cost} of processor time a token; late by {_row(self.client_late)}",
        ]
        return "\n".join(rows) + "\n"


def summarise(outcomes: Sequence[Outcome], *, cpu_s: float = 0.0) -> Summary:
    """Sums up a run; `cpu_s` is the processor time that the generator took for it."""
    done = [outcome for outcome in outcomes if not outcome.reason]
    failed = [outcome for outcome in outcomes if outcome.reason]
    reasons = Counter(outcome.reason for outcome in failed)
    statuses = Counter(str(outcome.status or "none") for outcome in outcomes)
    tokens = sum(outcome.tokens for outcome in outcomes)
    start = min((outcome.planned_s for outcome in outcomes), default=0.0)
    duration_s = max((outcome.last_s for outcome in outcomes), default=0.0) - start
    rates = [
        (outcome.tokens - 1) / (outcome.last_s - outcome.first_s)
        for outcome in done
        if outcome.tokens > 1 and outcome.last_s > outcome.first_s
    ]
    return Summary(
        requests=len(outcomes),
        ok=len(done),
        failed=len(failed),
        by_status=dict(sorted(statuses.items())),
        by_reason=dict(sorted(reasons.items())),
        examples={outcome.reason: outcome.detail for outcome in reversed(failed)},
        ttft=_percentiles_ms(outcome.first_s - outcome.planned_s for outcome in done if outcome.first_s),
        inter_token=_percentiles_ms(gap for outcome in done for gap in outcome.gaps_s),
        latency=_percentiles_ms(outcome.last_s - outcome.planned_s for outcome in done),
        tokens=tokens,
        counted_tokens=sum(outcome.counted_tokens for outcome in outcomes),
        tokens_per_s=tokens / duration_s if duration_s > 0 else 0.0,
        stream_tokens_per_s=statistics.median(rates) if rates else None,
        duration_s=duration_s,
        client_late=_percentiles_ms(outcome.sent_s - outcome.planned_s for outcome in outcomes),
        client_cpu_us_per_token=cpu_s / tokens * 1e6 if tokens and cpu_s else None,
    )


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The least of `ordered` values that at least `share` of them do not exceed (nearest rank); None of none."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


def _percentiles_ms(values_s: Iterable[float]) -> dict[str, float | None]:
    ordered = sorted(value * 1e3 for value in values_s)
    return {name: percentile(ordered, share) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1))}


def _row(values: dict[str, float | None]) -> str:
    return ", ".join(f"{name} {'-' if value is None else f'{value:.2f} ms'}" for name, value in values.items())
