"""The figures of many nodes as one text: relabelled, merged, and safe from what a stranger's server says."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from prometheus_lint import check_metrics

from llambo.cluster import node_metrics
from llambo.cluster.launch.base import NodeHandle
from llambo.cluster.node_series import FAMILIES_MAX, NodeSeries

LLAMA = """# HELP llamacpp:prompt_tokens_total Number of prompt tokens processed
# TYPE llamacpp:prompt_tokens_total counter
llamacpp:prompt_tokens_total {n}
# HELP llamacpp:prompt_seconds_total Prompt process time
# TYPE llamacpp:prompt_seconds_total counter
llamacpp:prompt_seconds_total 0.001103
# HELP llamacpp:n_tokens_max Largest observed n_tokens.
# TYPE llamacpp:n_tokens_max counter
llamacpp:n_tokens_max 20
# HELP llamacpp:requests_processing Number of requests processing
# TYPE llamacpp:requests_processing gauge
llamacpp:requests_processing 0
"""


def merged(**nodes: str) -> str:
    series = NodeSeries()
    for node, text in nodes.items():
        series.add(node, text)
    return series.text()


def values(page: str) -> dict[tuple[str, str], float]:
    samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    return {(sample.name, sample.labels["node"]): sample.value for sample in samples}


def test_each_family_comes_once_with_the_samples_of_all_nodes_below() -> None:
    page = merged(n1=LLAMA.format(n=1), n2=LLAMA.format(n=2))
    check_metrics(page)
    assert page.startswith(
        "# HELP llamacpp_prompt_tokens_total Number of prompt tokens processed\n"
        "# TYPE llamacpp_prompt_tokens_total counter\n"
        'llamacpp_prompt_tokens_total{node="n1"} 1\n'
        'llamacpp_prompt_tokens_total{node="n2"} 2\n'
    )
    assert len(values(page)) == 8


def test_a_counter_that_counts_no_total_is_the_gauge_that_it_is() -> None:
    page = merged(n1=LLAMA.format(n=1))
    assert "# TYPE llamacpp_n_tokens_max gauge\n" in page


def test_labels_stay_and_a_label_of_the_nodes_name_is_not_taken_from_the_node() -> None:
    head = "# TYPE llamacpp:x gauge\n"
    page = merged(n1=head + 'llamacpp:x{slot="0",name="a\\"b"} 1\nllamacpp:x{node="n9"} 2\nllamacpp:x{a="1",a="2"} 3\n')
    assert [line for line in page.splitlines() if line[0] != "#"] == [
        'llamacpp_x{node="n1",slot="0",name="a\\"b"} 1',
    ]
    check_metrics(page)


@pytest.mark.parametrize(
    "line",
    [
        "llamacpp:x 1",  # no type was announced
        "# TYPE llamacpp:x histogram\nllamacpp:x 1",
        "# TYPE llamacpp:x_total gauge\nllamacpp:x_total 1",
        "# TYPE llamacpp:x_count counter\nllamacpp:x_count 1",
        "# TYPE llamacpp:x gauge\nllamacpp:x one",
        "# TYPE llamacpp:x gauge\nllamacpp:x 1.2.3",
        "# TYPE llamacpp:x gauge\nllamacpp:x{a=1} 1",
        "# TYPE llamacpp:x gauge\nllamacpp:x 1 1 1",
        "# TYPE llamacpp:X gauge\nllamacpp:X 1",
        "# TYPE llambo_nodes gauge\nllambo_nodes 1",
        "<html>\0</html>",
        "\r\n\u2028# TYPE llamacpp:x gauge\u2028llamacpp:x 1",
    ],
)
def test_what_is_no_sample_of_an_announced_family_is_dropped(line: str) -> None:
    assert merged(n1=line) == ""
    assert values(merged(n1=line + "\n" + LLAMA.format(n=1))) == values(merged(n1=LLAMA.format(n=1)))


def test_a_sample_that_comes_twice_counts_once_and_help_texts_are_tamed() -> None:
    text = "# HELP llamacpp:x a \\x b\n# TYPE llamacpp:x gauge\nllamacpp:x 1\nllamacpp:x 2\n"
    assert merged(n1=text) == '# HELP llamacpp_x a x b\n# TYPE llamacpp_x gauge\nllamacpp_x{node="n1"} 1\n'


def test_a_node_without_end_takes_no_more_than_its_share() -> None:
    families = "".join(f"# TYPE llamacpp:x{n} gauge\nllamacpp:x{n} 1\n" for n in range(10 * FAMILIES_MAX))
    samples = "# TYPE llamacpp:y gauge\n" + "".join(f'llamacpp:y{{a="{n}"}} 1\n' for n in range(10_000))
    assert len(values(merged(n1=families))) <= FAMILIES_MAX
    assert len(merged(n1=samples).splitlines()) <= 2 + 256


@given(st.lists(st.one_of(st.text(), st.sampled_from(LLAMA.splitlines())), max_size=20))
def test_whatever_a_node_says_the_page_can_be_read(lines: list[str]) -> None:
    page = merged(n1="\n".join(lines), n2=LLAMA.format(n=2))
    assert values(page)["llamacpp_prompt_tokens_total", "n2"] == 2


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(path: Path, answer: Answer) -> AsyncIterator[NodeHandle]:
    """A server by hand, as the handle of a node."""
    held: set[asyncio.StreamWriter] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.add(writer)
        await answer(reader, writer)

    async with await asyncio.start_unix_server(connected, path, backlog=2048):
        yield NodeHandle("n1.1", 0, f"unix://{path}", "here", 1, 512)
        for writer in held:
            writer.transport.abort()


async def tell(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes, status: str = "200 OK") -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status.encode(), len(body), body))
    writer.close()


async def test_a_thousand_nodes_are_on_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_metrics, "ALL_S", 60.0)  # the servers run in this process too, on a busy machine
    at_once = most = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        await tell(reader, writer, LLAMA.format(n=1).encode())
        at_once -= 1

    async with serving(tmp_path / "s", answer) as handle:
        page = await node_metrics.node_metrics((f"n{n}", handle) for n in range(1000))
    check_metrics(page)
    assert len(values(page)) == 4 * 1000
    assert most <= node_metrics.CONCURRENT


async def test_a_thousand_nodes_that_hang_take_no_longer_than_a_second_and_a_half(tmp_path: Path) -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(tmp_path / "s", silent) as handle:
        started = time.perf_counter()
        assert await node_metrics.node_metrics((f"n{n}", handle) for n in range(1000)) == ""
        assert time.perf_counter() - started < 3  # and what a busy machine adds


async def test_nodes_that_hang_fail_or_never_end_are_left_out(tmp_path: Path) -> None:
    async def good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await tell(reader, writer, LLAMA.format(n=7).encode())

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async def without(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await tell(reader, writer, LLAMA.format(n=1).encode(), "501 Not Implemented")

    async def no_http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\0" * 100 + b"\r\n\r\n")

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" + LLAMA.format(n=1).encode())
        with suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

    started = time.perf_counter()
    async with AsyncExitStack() as stack:
        nodes = {"gone": NodeHandle("n.1", 0, f"unix://{tmp_path}/gone", "here", 1, 512)}
        for answer in (good, silent, without, no_http, endless):
            name = answer.__name__
            nodes[name] = await stack.enter_async_context(serving(tmp_path / name, answer))
        page = await node_metrics.node_metrics(nodes.items())
    assert time.perf_counter() - started < 3
    assert len(nodes) == 6
    assert {node for _, node in values(page)} == {"good"}
