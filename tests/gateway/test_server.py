"""The listeners and the connections on them: slow, silent, greedy and broken clients, TLS, and the end of it all."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme
from http_servers import Told, ask, connect, ends, header, read_reply, serving
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import ConnectionClosed

from llambo.core.errors import BadConfig, NameInUse, Refused
from llambo.core.tokens import TokenStore

HANDSHAKE = {
    "connection": "Upgrade",
    "upgrade": "websocket",
    "sec_websocket_version": "13",
    "sec_websocket_key": "AAECAwQFBgcICQoLDA0ODw==",
}
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"


async def test_it_serves_tcp_and_a_unix_socket_at_once_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    async with serving(tmp_path, listen=f"127.0.0.1:0, unix!{path}") as server:
        tcp, unix = server.addresses
        assert tcp.startswith("http://127.0.0.1:")
        assert unix == f"unix!{path}"
        assert path.stat().st_mode & 0o777 == 0o600
        replies = [await ask(server, number=number) for number in (0, 1)]
        assert [reply.status for reply in replies] == [200, 200]
        assert json.loads(replies[1].body)["scope"] == "infer"
        assert "server" not in replies[0].headers
        assert "date" in replies[0].headers
    assert not path.exists()
    with pytest.raises(ConnectionRefusedError):
        await connect(server)


async def test_a_name_and_an_ipv6_address_can_be_listened_on(tmp_path: Path) -> None:
    async with serving(tmp_path, listen="localhost:0") as server:
        assert server.addresses[0].startswith("http://localhost:")
        assert (await ask(server)).status == 200
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    async with serving(tmp_path, listen="[::1]:0") as server:
        assert server.addresses[0].startswith("http://[::1]:")
        assert (await ask(server, host="[::1]:1")).status == 200


async def test_an_address_in_use_is_named_with_what_to_set(tmp_path: Path) -> None:
    path = tmp_path / "g.sock"
    async with serving(tmp_path, listen=f"127.0.0.1:0,unix!{path}") as server:
        taken = server.addresses[0].removeprefix("http://")
        for listen in (taken, f"unix!{path}"):
            with pytest.raises(NameInUse, match=r"is in use; set LLAMBO_GATEWAY_LISTEN") as caught:
                async with serving(tmp_path, listen=f"127.0.0.1:0,{listen}"):
                    pass
            assert listen.removeprefix("unix!") in caught.value.message
        assert (await ask(server)).status == 200


@pytest.mark.parametrize(
    ("listen", "complaint"),
    [
        ("192.0.2.1:5641", "192.0.2.1 is no address of this machine"),
        ("no-such-host.invalid:5641", "'no-such-host.invalid' is neither an address nor a name"),
        ("unix!/no/such/directory/g.sock", "/no/such/directory does not exist"),
    ],
)
async def test_an_address_that_cannot_be_is_bad_configuration(tmp_path: Path, listen: str, complaint: str) -> None:
    TokenStore(tmp_path / "tokens.json").create("infer")
    with pytest.raises(BadConfig, match=complaint):
        async with serving(tmp_path, listen=listen):
            pass


async def test_beyond_this_machine_it_needs_a_valid_token_and_warns_without_tls(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = TokenStore(tmp_path / "tokens.json")
    tokens.create("infer", expires_s=1e-9)
    for listen in ("0.0.0.0:0", "*:0"):
        with pytest.raises(Refused, match="without a valid token: make one with `llamboctl token create") as caught:
            async with serving(tmp_path, listen=listen):
                pass
        assert caught.value.exit_status == 4
    tokens.create("infer")
    async with serving(tmp_path, listen="0.0.0.0:0") as server:
        assert "has no TLS" in caplog.text
        assert (await ask(server)).status == 200, "over loopback it is the local machine that asks"


# --- several requests in one piece ---


async def test_a_hang_up_is_heard_by_the_answer_before_the_last_request(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app) as server:
        reader, writer = await connect(server)
        writer.write(header("/stream") + header("/stream"))
        await reader.readuntil(b"one\r\n")
        writer.transport.abort()
        await asyncio.wait_for(app.hung_up.wait(), 5)


async def test_a_body_that_stops_behind_a_stream_does_not_end_it(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app, header_timeout=0.2) as server:
        reader, writer = await connect(server)
        writer.write(header("/stream") + header("/v1/chat/completions", "POST", content_length="9") + b"half")
        await reader.readuntil(b"one\r\n")
        await asyncio.sleep(0.6)  # nothing happens: that is what is tested
        app.release.set()
        assert (await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), 5)).startswith(b"3\r\ntwo\r\n")
        assert (await read_reply(reader)).status == 408
        writer.close()


async def test_a_websocket_behind_a_stream_is_none(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app) as server:
        reader, writer = await connect(server)
        writer.write(header("/stream"))
        await reader.readuntil(b"one\r\n")
        writer.write(header("/v1/ws", **HANDSHAKE))
        assert b"101" not in await ends(reader)
        await asyncio.wait_for(app.hung_up.wait(), 5)
        writer.close()


@pytest.mark.parametrize(
    "wrong",
    [
        {"content_length": "5"},
        {"transfer_encoding": "chunked"},
        {"x_long": "x" * 9000},
        {f"x_{number}": "y" for number in range(200)},
    ],
    ids=["length", "chunked", "long", "many"],
)
async def test_a_handshake_that_cannot_be_is_refused_at_once_and_a_stop_is_a_stop(
    tmp_path: Path, wrong: dict[str, str]
) -> None:
    async with serving(tmp_path) as server:
        reader, writer = await connect(server)
        writer.write(header("/v1/ws", **HANDSHAKE, **wrong))
        assert (await ends(reader)).startswith((b"HTTP/1.1 400", b"HTTP/1.1 431"))
        writer.close()
        await asyncio.wait_for(server.stop(5), 5)


async def test_a_client_that_asks_before_it_sends_is_not_waited_for_once_it_was_refused(tmp_path: Path) -> None:
    async with serving(tmp_path, require_token=True, header_timeout=0.3) as server:
        reader, writer = await connect(server)
        writer.write(header("/v1/chat/completions", "POST", expect="100-continue", content_length="2000"))
        reply = await read_reply(reader)
        assert (reply.status, reply.headers["connection"]) == (401, "close")
        assert await ends(reader) == b""
        writer.close()


async def test_a_refused_body_that_never_comes_is_no_second_reply(tmp_path: Path) -> None:
    async with serving(tmp_path, require_token=True, header_timeout=0.2) as server:
        reader, writer = await connect(server)
        writer.write(header("/v1/chat/completions", "POST", content_length="2000") + b"some")
        assert (await read_reply(reader)).status == 401
        assert await ends(reader) == b""
        writer.close()


# --- slow and silent clients ---


async def test_a_header_that_never_ends_is_ended(tmp_path: Path) -> None:
    async with serving(tmp_path, header_timeout=0.5) as server:
        reader, writer = await connect(server)
        began = asyncio.get_running_loop().time()
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n")
        for number in range(100):
            writer.write(f"x-{number}: y\r\n".encode())
            await asyncio.sleep(0.05)
            if reader._buffer:  # type: ignore[attr-defined]
                break
        assert 0.4 < asyncio.get_running_loop().time() - began < 4, "each line does not begin it anew"
        assert (await read_reply(reader)).status == 408
        assert await ends(reader) == b""
        writer.close()


async def test_a_second_header_on_a_kept_connection_has_the_same_limit(tmp_path: Path) -> None:
    async with serving(tmp_path, header_timeout=0.3) as server:
        for tease in (b"\r\n", b"GET /"):
            reader, writer = await connect(server)
            writer.write(header())
            assert (await read_reply(reader)).status == 200
            writer.write(tease)
            answer = await ends(reader)
            assert answer.startswith(b"HTTP/1.1 408")
            writer.close()


async def test_a_thousand_silent_connections_are_closed_and_others_are_served_meanwhile(tmp_path: Path) -> None:
    async with serving(tmp_path, header_timeout=1.5) as server:
        silent = [await connect(server) for _ in range(1000)]
        assert (await ask(server)).status == 200
        assert all(not reader.at_eof() for reader, _ in silent[-10:])
        assert set(await asyncio.gather(*(ends(reader) for reader, _ in silent))) == {b""}
        assert (await ask(server)).status == 200
        assert len(server._state.connections) <= 1
        for _, writer in silent:
            writer.close()


async def test_a_connection_that_waits_between_requests_is_no_slow_one(tmp_path: Path) -> None:
    async with serving(tmp_path, header_timeout=0.4) as server:
        reader, writer = await connect(server)
        for _ in range(2):
            writer.write(header())
            assert (await read_reply(reader)).status == 200
            await asyncio.sleep(0.6)  # nothing happens: that is what is tested
        writer.close()


async def test_a_stream_may_last_longer_than_a_header(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app, header_timeout=0.2) as server:
        reader, writer = await connect(server)
        writer.write(header("/stream"))
        await reader.readuntil(b"one\r\n")
        await asyncio.sleep(0.5)  # nothing happens: that is what is tested
        app.release.set()
        assert await reader.readuntil(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        writer.close()


@pytest.mark.parametrize("announced", [b"content-length: 100", b"transfer-encoding: chunked"])
async def test_a_body_that_stops_is_ended_and_the_application_hears_of_it(tmp_path: Path, announced: bytes) -> None:
    app = Told()
    async with serving(tmp_path, app, header_timeout=0.3) as server:
        reader, writer = await connect(server)
        writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\n" + announced + b"\r\n\r\n5\r\nabc")
        reply = await read_reply(reader)
        assert (reply.status, reply.error["code"]) == (408, "timeout")
        await asyncio.wait_for(app.hung_up.wait(), 5)
        assert await ends(reader) == b""
        writer.close()


async def test_a_half_closed_connection_is_closed_and_what_it_began_is_over(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app) as server:
        for begun in (b"", b"GET / HT", header("/v1/models", "POST", content_length="10") + b"abc"):
            reader, writer = await connect(server)
            writer.write(begun)
            writer.write_eof()
            await ends(reader)
            writer.close()
        reader, writer = await connect(server)
        writer.write(header("/stream"))
        await reader.readuntil(b"one\r\n")
        app.hung_up.clear()
        writer.write_eof()
        await asyncio.wait_for(app.hung_up.wait(), 5)
        writer.close()
        await asyncio.wait_for(server._state.connections.none_left.wait(), 5)


# --- too much ---


async def test_a_flood_of_headers_is_refused(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        one = b"x-filler: " + b"y" * 1000 + b"\r\n"
        for flood in (one * 70 + b"\r\n", one * 70, b"x-long: " + b"z" * 70_000, b"z" * 70_000):
            reader, writer = await connect(server)
            writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + flood)
            assert (await read_reply(reader)).status in (400, 431)
            assert await ends(reader) == b""
            writer.close()
        reader, writer = await connect(server)
        writer.write(b"GET / HTTP/1.1\r\nhost: localhost\r\n" + one * 60 + b"\r\n")
        assert (await read_reply(reader)).status == 200, "60 KB are within the limit"
        writer.close()


async def test_an_announced_body_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app, max_body=100_000) as server:
        reader, writer = await connect(server)
        writer.write(header("/v1/messages", "POST", content_length="100000000"))
        reply = await read_reply(reader)
        assert (reply.status, reply.error["type"]) == (413, "request_too_large")
        assert "100000000 bytes" in reply.error["message"]
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(20):
                for _ in range(1600):
                    writer.write(CHUNK[7:-2])
                    await writer.drain()
        writer.close()
        assert app.bodies == []
        assert (await ask(server, "/v1/embeddings", "POST", body=b"x" * 100_000)).status == 200


async def test_a_chunked_body_is_counted(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app, max_body=1_000_000) as server:
        reader, writer = await connect(server)
        writer.write(header("/v1/embeddings", "POST", transfer_encoding="chunked"))
        for _ in range(17):
            writer.write(CHUNK)
        reply = await read_reply(reader)
        assert (reply.status, reply.error["code"]) == (413, "too_large")
        await asyncio.wait_for(app.hung_up.wait(), 5)
        writer.close()


async def test_more_connections_than_the_limit_get_a_503(tmp_path: Path) -> None:
    async with serving(tmp_path, max_connections=3) as server:
        held = [await connect(server) for _ in range(3)]
        assert (await _until_counted(server, 3)) == 3
        reader, writer = await connect(server)
        reply = await read_reply(reader)
        assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (503, "overloaded", "1")
        writer.close()
        for _, writer in held:
            writer.close()
        await asyncio.wait_for(server._state.connections.none_left.wait(), 5)
        assert (await ask(server)).status == 200


async def _until_counted(server: Any, wanted: int) -> int:
    async with asyncio.timeout(5):
        while len(server._state.connections) < wanted:
            await asyncio.sleep(0.01)
    return len(server._state.connections)


@pytest.mark.parametrize(
    "nonsense",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: localhost\r\n\r\n",
        b"GET /v1/ws\xff HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
        b"GET /v1/ws HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
    ],
)
async def test_what_is_no_http_is_a_400_and_costs_nobody_else_anything(tmp_path: Path, nonsense: bytes) -> None:
    async with serving(tmp_path) as server:
        other, other_writer = await connect(server)
        reader, writer = await connect(server)
        writer.write(nonsense)
        assert (await ends(reader)).startswith(b"HTTP/1.1 4")
        other_writer.write(header())
        assert (await read_reply(other)).status == 200
        writer.close()
        other_writer.close()


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
async def test_a_client_that_offers_http_2_is_answered_in_http_1_with_its_body(tmp_path: Path, pieces: int) -> None:
    app = Told()
    async with serving(tmp_path, app) as server:
        reader, writer = await connect(server)
        offer = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2_settings": "AAMAAABkAAQAoAAA"}
        requests = [header("/a", "POST", content_length="5", **offer) + b"12345", header("/b", **offer)]
        chunked = b"3\r\nabc\r\n0\r\n\r\n"
        requests.append(header("/c", "POST", transfer_encoding="chunked", **offer) + chunked)
        for request in requests:
            size = -(-len(request) // pieces)
            for start in range(0, len(request), size):
                writer.write(request[start : start + size])
                await asyncio.sleep(0)
            assert (await read_reply(reader)).status == 200
        assert app.bodies == [5, 0, 3]
        writer.close()


# --- TLS ---


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def files_of(authority: trustme.CA, directory: Path, name: str = "127.0.0.1") -> dict[str, str]:
    issued = authority.issue_cert(name)
    certificate, key = directory / "certificate.pem", directory / "key.pem"
    certificate.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    key.write_bytes(issued.private_key_pem.bytes())
    return {"tls_certificate": str(certificate), "tls_key": str(key)}


async def test_with_a_certificate_it_speaks_tls_alone(tmp_path: Path, authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    app = Told()
    async with serving(tmp_path, app, max_body=2000, **files_of(authority, tmp_path)) as server:
        assert server.addresses[0].startswith("https://127.0.0.1:")
        assert (await ask(server, tls=trusting, body=b"x" * 1000)).status == 200
        assert (await ask(server, tls=trusting, body=b"x" * 3000)).status == 413
        with pytest.raises(ssl.SSLCertVerificationError):
            await connect(server, tls=ssl.create_default_context())
        reader, writer = await connect(server)
        writer.write(header())
        assert b"200 OK" not in await ends(reader)
        writer.close()
        async with ws_connect(server.addresses[0].replace("http", "ws", 1) + "/v1/ws", ssl=trusting) as client:
            assert json.loads(await client.recv())["scope"] == "infer"


async def test_a_client_that_does_not_begin_tls_is_closed(tmp_path: Path, authority: trustme.CA) -> None:
    async with serving(tmp_path, header_timeout=0.3, **files_of(authority, tmp_path)) as server:
        silent, silent_writer = await connect(server)
        assert await ends(silent) == b""
        silent_writer.close()


async def test_a_certificate_that_cannot_be_used_is_told_with_its_key(tmp_path: Path, authority: trustme.CA) -> None:
    good = files_of(authority, tmp_path)
    (tmp_path / "other").mkdir()
    other = files_of(authority, tmp_path / "other")
    text = tmp_path / "text.pem"
    text.write_text("hello")
    broken = tmp_path / "broken.pem"
    broken.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    locked = tmp_path / "locked.pem"
    locked.write_text("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
    cases = [
        ({"tls_certificate": "/no/such.pem"}, "gateway.tls_certificate: /no/such.pem cannot be read: No such file"),
        ({"tls_key": str(tmp_path)}, f"gateway.tls_key: {tmp_path} cannot be read: Is a directory"),
        ({"tls_certificate": str(text)}, "gateway.tls_certificate: .* holds no certificate as PEM"),
        ({"tls_key": str(text)}, "gateway.tls_key: .* holds no private key as PEM"),
        ({"tls_key": other["tls_key"]}, "gateway.tls_key: .* is not the key of the certificate"),
        ({"tls_key": str(locked)}, "gateway.tls_key: .* is encrypted"),
        ({"tls_certificate": str(broken)}, "gateway.tls_certificate: .* cannot be used"),
    ]
    for changed, complaint in cases:
        with pytest.raises(BadConfig, match=complaint):
            async with serving(tmp_path, **(good | changed)):
                pass


# --- the end ---


async def test_a_stop_lets_streams_finish_and_answers_what_is_new_with_503(tmp_path: Path) -> None:
    app = Told()
    async with serving(tmp_path, app) as server:
        idle, idle_writer = await connect(server)
        idle_writer.write(header())
        await read_reply(idle)
        reader, writer = await connect(server)
        writer.write(header("/stream"))
        await reader.readuntil(b"one\r\n")
        stopping = asyncio.create_task(server.stop(30))
        assert await ends(idle) == b"", "a client that waits for nothing is let go"
        reply = await ask(server)
        assert (reply.status, reply.error["code"], reply.headers["connection"]) == (503, "stopping", "close")
        assert (await ask(server, "/health")).status == 200
        assert not stopping.done()
        app.release.set()
        assert await ends(reader) == b"3\r\ntwo\r\n0\r\n\r\n"
        await asyncio.wait_for(stopping, 5)
        with pytest.raises(ConnectionRefusedError):
            await connect(server)
        idle_writer.close()
        writer.close()


async def stopped_in_the_middle(tmp_path: Path, *graces_s: float) -> float:
    """Seconds that stops with these periods of grace take together, begun 0.1 s apart, while a stream runs on."""
    app = Told()
    async with serving(tmp_path, app) as server:
        reader, writer = await connect(server)
        with contextlib.closing(writer):
            writer.write(header("/stream"))
            await reader.readuntil(b"one\r\n")
            loop = asyncio.get_running_loop()
            began = loop.time()
            stopping = asyncio.create_task(server.stop(graces_s[0]))
            await asyncio.sleep(0.1)  # nothing happens: that is what is tested
            assert not stopping.done()
            for grace_s in graces_s[1:]:
                await server.stop(grace_s)
            await stopping
            took_s = loop.time() - began
            assert app.hung_up.is_set(), "the application saw that its client is gone"
            assert await ends(reader) == b""
            assert not server._state.tasks
            assert not server._state.connections
    return took_s


async def test_the_drain_has_an_end(tmp_path: Path) -> None:
    assert 0.4 < await stopped_in_the_middle(tmp_path, 0.5) < 3


async def test_a_second_stop_hurries_the_first(tmp_path: Path) -> None:
    took_s = [await stopped_in_the_middle(tmp_path, 30, 0) for _ in range(3)]
    assert min(took_s) < 2, "the best counts: a busy machine may add to one"


async def test_a_stop_ends_websockets_that_only_watch(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        url = server.addresses[0].replace("http", "ws", 1)
        async with ws_connect(f"{url}/ws/events") as client:
            await client.recv()
            await asyncio.wait_for(server.stop(30), 5)
            with pytest.raises(ConnectionClosed) as caught:
                await client.recv()
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1012


async def test_a_client_that_reads_nothing_does_not_hold_a_stop(tmp_path: Path) -> None:
    begun = asyncio.Event()

    async def flood(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        gone = asyncio.create_task(receive())
        begun.set()
        while (await receive() if gone.done() else {"type": ""})["type"] != "http.disconnect":
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        gone.cancel()

    async with serving(tmp_path, flood) as server:
        _, writer = await connect(server)
        writer.transport.pause_reading()
        writer.write(header())
        await begun.wait()
        await asyncio.wait_for(server.stop(0.2), 10)
        assert not server._state.connections
        writer.transport.abort()
