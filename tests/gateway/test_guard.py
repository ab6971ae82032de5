"""Who is let in: tokens, scopes, pages, rates; each over a real socket."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from pathlib import Path
from typing import Any

import pytest
from http_servers import ask, serving
from websockets.asyncio.client import connect as ws_connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from llambo.core.tokens import Scope, TokenStore
from llambo.gateway.server import GatewayServer


def make(home: Path, scope: Scope = "infer", **options: Any) -> tuple[str, str]:
    return TokenStore(home / "tokens.json").create(scope, **options)


def bearer(secret: str) -> dict[str, str]:
    return {"authorization": f"Bearer {secret}"}


def ws_url(server: GatewayServer, path: str) -> str:
    return server.addresses[0].replace("http", "ws", 1) + path


async def test_every_request_has_an_id_of_its_own_and_on_this_machine_nobody_needs_a_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        replies = [await ask(server) for _ in range(2)]
        told = [json.loads(reply.body) for reply in replies]
        assert [known["request_id"] for known in told] == [reply.headers["x-request-id"] for reply in replies]
        assert len({known["request_id"] for known in told}) == 2
        assert told[0]["request_id"].startswith("req-")
        assert len(told[0]["request_id"]) == 36
        assert (told[0]["owner"], told[0]["scope"]) == ("", "infer")


@pytest.mark.parametrize("name", ["authorization", "x_api_key"])
async def test_a_valid_token_says_who_asks(tmp_path: Path, name: str) -> None:
    token_id, secret = make(tmp_path, "admin")
    async with serving(tmp_path, require_token=True) as server:
        value = f"Bearer {secret}" if name == "authorization" else secret
        told = json.loads((await ask(server, **{name: value})).body)
        assert (told["owner"], told["scope"]) == (token_id, "admin")


async def test_a_token_is_needed_where_it_is_required(tmp_path: Path) -> None:
    make(tmp_path)
    async with serving(tmp_path, require_token=True) as server:
        for path in ("/v1/models", "/v1/chat/completions", "/metrics", "/no/such", "/"):
            reply = await ask(server, path)
            assert (reply.status, reply.error["code"]) == (401, "invalid_api_key"), path
            assert reply.headers["www-authenticate"] == 'Bearer realm="llambo"'
        for path in ("/health", "/ready"):
            assert (await ask(server, path)).status == 200


@pytest.mark.parametrize("headers", [{"authorization": "Bearer sk-none"}, {"x_api_key": "\xff\xfe"}])
async def test_a_placeholder_is_no_token_and_does_no_harm_where_none_is_needed(
    tmp_path: Path, headers: dict[str, str]
) -> None:
    make(tmp_path)
    async with serving(tmp_path) as server:
        assert (await ask(server, **headers)).status == 200
    async with serving(tmp_path, require_token=True) as server:
        assert (await ask(server, **headers)).error["code"] == "invalid_api_key"


@pytest.mark.parametrize("require", [True, False])
@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer llb_wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": "llb_wrong"},
        {"authorization": "Bearer llb_\xff\xfe"},
        {"x_api_key": "llb_wrong"},
        {"x_api_key": "llb_" + "x" * 10_000},
    ],
)
async def test_a_wrong_or_malformed_token_is_refused_even_where_none_is_needed(
    tmp_path: Path, require: bool, headers: dict[str, str]
) -> None:
    make(tmp_path)
    async with serving(tmp_path, require_token=require) as server:
        reply = await ask(server, **headers)
        assert (reply.status, reply.error["code"]) == (401, "invalid_api_key")
        assert b"llb_wrong" not in reply.body


async def test_an_expired_or_revoked_token_is_worthless_from_then_on(tmp_path: Path) -> None:
    _, short = make(tmp_path, expires_s=0.3)
    until = time.time() + 0.3
    token_id, secret = make(tmp_path)
    async with serving(tmp_path, require_token=True) as server:
        assert (await ask(server, **bearer(secret))).status == 200
        TokenStore(tmp_path / "tokens.json").revoke(token_id)
        assert (await ask(server, **bearer(secret))).status == 401
        while time.time() <= until:
            await asyncio.sleep(0.01)
        assert (await ask(server, **bearer(short))).status == 401


@pytest.mark.parametrize(
    ("method", "path", "needed"),
    [
        ("GET", "/v1/models", "read"),
        ("GET", "/metrics", "read"),
        ("GET", "/docs", "read"),
        ("GET", "/no/such", "read"),
        ("POST", "/v1/chat/completions", "infer"),
        ("POST", "/tokenize", "infer"),
        ("GET", "/v1/streams/req-1", "infer"),
        ("DELETE", "/v1/streams/req-1", "infer"),
        ("GET", "/v1/ws", "infer"),
    ],
)
async def test_a_scope_must_be_enough(tmp_path: Path, method: str, path: str, needed: str) -> None:
    secrets = {scope: make(tmp_path, scope)[1] for scope in ("read", "infer", "admin")}
    async with serving(tmp_path) as server:
        statuses = [(await ask(server, path, method, **bearer(secret))).status for secret in secrets.values()]
        assert statuses == [200 if needed == "read" else 403, 200, 200]
        if needed == "infer":
            reply = await ask(server, path, method, **bearer(secrets["read"]))
            assert reply.error["message"] == "this needs a token with scope infer, and the one given has read"


async def test_refusals_of_messages_are_in_anthropics_words(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            document = json.loads((await ask(server, path, "POST", x_api_key="llb_no")).body)
            assert document["type"] == "error"
            assert document["error"]["type"] == "authentication_error"


async def test_a_damaged_token_file_lets_nobody_in_with_a_token(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = make(tmp_path)
    async with serving(tmp_path, require_token=True) as server:
        (tmp_path / "tokens.json").write_text("{")
        reply = await ask(server, **bearer(secret))
        assert reply.status == 503
        assert str(tmp_path) not in reply.body.decode()
        assert "is damaged" in caplog.text
        assert secret not in caplog.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:5641", "10.0.0.1", "[::2]", "localhost.evil.example"])
async def test_a_foreign_host_is_refused_on_this_machine(tmp_path: Path, host: str) -> None:
    async with serving(tmp_path) as server:
        reply = await ask(server, host=host)
        assert (reply.status, reply.error["code"]) == (403, "refused")


@pytest.mark.parametrize("host", ["localhost", "localhost:5641", "LOCALHOST:1", "127.0.0.1:80", "[::1]:5641", "[::1]"])
async def test_this_machines_own_names_are_fine(tmp_path: Path, host: str) -> None:
    async with serving(tmp_path) as server:
        assert (await ask(server, host=host)).status == 200


async def test_on_a_unix_socket_any_host_is_fine(tmp_path: Path) -> None:
    async with serving(tmp_path, listen=f"unix!{tmp_path}/g.sock") as server:
        assert (await ask(server, host="cluster")).status == 200


async def test_pages_of_others_are_refused_and_our_own_are_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as server:
        for origin in ("https://evil.example", "null", "http://localhost:1234", "file://"):
            reply = await ask(server, origin=origin)
            assert (reply.status, reply.error["code"]) == (403, "refused"), origin
            assert "access-control-allow-origin" not in reply.headers
        own = await ask(server, host="localhost:5641", origin="http://localhost:5641")
        assert own.status == 200
        preflight = await ask(
            server, method="OPTIONS", origin="https://a.example", access_control_request_method="POST"
        )
        assert preflight.status == 403


async def test_pages_that_are_configured_may_ask(tmp_path: Path) -> None:
    page = "https://chat.example"
    async with serving(tmp_path, cors_origins=f"{page},https://b.example", require_token=True) as server:
        preflight = await ask(
            server,
            "/v1/chat/completions",
            "OPTIONS",
            origin=page,
            access_control_request_method="POST",
            access_control_request_headers="authorization,x-session-id",
        )
        assert (preflight.status, preflight.body) == (204, b"")
        assert preflight.headers["access-control-allow-origin"] == page
        assert preflight.headers["access-control-allow-headers"] == "authorization,x-session-id"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        refused = await ask(server, origin=page)
        assert refused.status == 401, "a page needs a token as everybody does"
        assert refused.headers["access-control-allow-origin"] == page
        assert refused.headers["vary"] == "origin"
        allowed = await ask(server, origin=page, **bearer(make(tmp_path)[1]))
        assert allowed.status == 200
        assert "x-request-id" in allowed.headers["access-control-expose-headers"]
        assert (await ask(server, origin="https://c.example")).status == 403


async def test_all_pages_may_ask_where_that_is_configured(tmp_path: Path) -> None:
    async with serving(tmp_path, cors_origins="*") as server:
        reply = await ask(server, origin="https://any.example")
        assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, "*")
        assert (await ask(server, host="evil.example", origin="http://evil.example")).status == 403


async def test_a_rate_counts_per_token_and_says_when_to_come_back(tmp_path: Path) -> None:
    secrets = [make(tmp_path)[1] for _ in range(2)]
    async with serving(tmp_path, requests_per_minute=2) as server:
        for secret in secrets:
            statuses = [(await ask(server, **bearer(secret))).status for _ in range(3)]
            assert statuses == [200, 200, 429]
        reply = await ask(server, **bearer(secrets[0]))
        assert reply.error["code"] == "rate_limit_exceeded"
        assert 1 <= int(reply.headers["retry-after"]) <= 30
        assert [(await ask(server)).status for _ in range(3)] == [200, 200, 429], "clients without one count by address"
        assert (await ask(server, "/health")).status == 200


async def test_a_websocket_is_let_in_by_the_same_rules(tmp_path: Path) -> None:
    token_id, secret = make(tmp_path)
    _, reader = make(tmp_path, "read")
    async with serving(tmp_path, require_token=True, cors_origins="https://chat.example") as server:
        url = ws_url(server, "/v1/ws")
        async with ws_connect(url, additional_headers={"Authorization": f"Bearer {secret}"}) as client:
            assert json.loads(await client.recv()) == {"subprotocols": [], "owner": token_id, "scope": "infer"}
            assert client.response is not None
            assert client.response.headers["x-request-id"].startswith("req-")
        refused: list[tuple[dict[str, Any], int]] = [
            ({}, 401),
            ({"additional_headers": {"x-api-key": "llb_no"}}, 401),
            ({"additional_headers": {"x-api-key": reader}}, 403),
            ({"additional_headers": {"x-api-key": secret}, "origin": "https://evil.example"}, 403),
            ({"additional_headers": {"x-api-key": secret, "Host": "evil.example"}}, 403),
        ]
        for options, status in refused:
            with pytest.raises(InvalidStatus) as caught:
                await ws_connect(url, **options)
            assert caught.value.response.status_code == status
            assert json.loads(caught.value.response.body)["error"]["code"] in {"invalid_api_key", "refused"}
        async with ws_connect(ws_url(server, "/ws/events"), additional_headers={"x-api-key": reader}) as client:
            assert json.loads(await client.recv())["scope"] == "read"


async def test_a_page_gives_its_websocket_a_token_as_a_subprotocol_that_nobody_repeats(tmp_path: Path) -> None:
    token_id, secret = make(tmp_path)
    async with serving(tmp_path, require_token=True, cors_origins="https://chat.example") as server:
        offered = [Subprotocol("llambo"), Subprotocol(f"llambo-token.{secret}")]
        async with ws_connect(ws_url(server, "/v1/ws"), subprotocols=offered, origin="https://chat.example") as client:
            assert client.subprotocol == "llambo"
            assert json.loads(await client.recv()) == {"subprotocols": ["llambo"], "owner": token_id, "scope": "infer"}
        with pytest.raises(InvalidStatus) as caught:
            await ws_connect(ws_url(server, "/v1/ws"), subprotocols=[Subprotocol("llambo-token.llb_wrong")])
        assert caught.value.response.status_code == 401
        assert b"llb_wrong" not in caught.value.response.body


async def test_a_fault_of_the_application_is_a_500_in_the_envelope_and_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, secret = make(tmp_path)
    async with serving(tmp_path) as server:
        reply = await ask(server, "/fault", **bearer(secret))
        assert (reply.status, reply.error["code"]) == (500, "failed")
        assert reply.headers["x-request-id"] in reply.error["message"]
        records = [record for record in caplog.records if record.levelno >= logging.WARNING]
        assert [record.name for record in records] == ["llambo.gateway"]
        assert secret not in caplog.text
