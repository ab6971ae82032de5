"""A load generator for any server with OpenAI's API: `python -m bench.load URL --model M`.

`plan` says what is asked and when (pure, from a seed), `wire` reads replies (pure), `client` sends, `report` sums up.
It knows nothing of Llambo.
"""

from __future__ import annotations

from bench.load.client import Target, run
from bench.load.plan import Span, Workload
from bench.load.report import Summary, summarise
from bench.load.wire import Outcome

__all__ = ["Outcome", "Span", "Summary", "Target", "Workload", "run", "summarise"]
