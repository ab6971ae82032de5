"""Everything that /openapi.json describes, asked with whatever its schemas allow and with what they do not."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import pytest
import schemathesis
from gateways import serving
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    status_code_conformance,
)

from llambo.cluster.api import Cluster
from llambo.core.types import LoadOptions

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
]
EXAMPLES = 12
_CALL_S = 60.0


def _ask_everything(url: str, token: str) -> int:
    """How many endpoints were asked; whatever one of them does wrong is raised."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers={"Authorization": f"Bearer {token}"})
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @settings(
                max_examples=EXAMPLES,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: schemathesis.Case) -> None:
                headers = {"Authorization": f"Bearer {token}"}
                case.call_and_validate(base_url=url, headers=headers, checks=CHECKS, timeout=_CALL_S)

            with suppress(Unsatisfiable):  # there is nothing to get wrong
                ask()
        asked += 1
    return asked


@pytest.mark.timeout(400)
async def test_every_endpoint_answers_as_its_description_says() -> None:
    async with Cluster() as cluster:
        # A small context bounds the answers that nobody set an end to.
        await cluster.load("built-in", options=LoadOptions(ctx=256, slots=2))
        async with serving(cluster) as served:
            assert await asyncio.to_thread(_ask_everything, served.url, served.token) >= 20
