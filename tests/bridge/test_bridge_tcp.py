"""TCP listeners: nobody without a token, nothing beyond its scope."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from bridge_fakes import FakeDoor, running_bridge

from llambo.bridge.async_client import AsyncBridge
from llambo.bridge.server import BridgeServer
from llambo.bridge.settings import BridgeSettings
from llambo.core.errors import BadConfig, NameInUse, Refused
from llambo.core.tokens import TokenStore

LOCAL = "tcp!127.0.0.1!0"


@pytest.fixture
def tokens(tmp_path: Path) -> TokenStore:
    return TokenStore(tmp_path / "tokens.json")


async def test_a_right_token_opens_the_door_as_far_as_its_scope(path: Path, tokens: TokenStore) -> None:
    _, secret = tokens.create("infer")
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        client = await bridge.client(bridge.port)
        assert (await client.ask("PING"))["code"] == "refused"
        assert (await client.ask(f"AUTH {secret}"))["data"] == {"scope": "infer"}
        assert (await client.ask("INFER hello"))["data"] == "hello"
        assert (await client.ask("QUIT"))["code"] == "refused"
        assert (await client.ask("LOAD /m"))["message"] == "LOAD needs a token of scope admin; this one has scope infer"


async def test_what_is_sent_with_auth_in_one_go_is_answered(path: Path, tokens: TokenStore) -> None:
    _, secret = tokens.create("admin")
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        client = await bridge.client(bridge.port)
        client.send(f"AUTH {secret}\nPING\nINFER hello\n")
        client.writer.write_eof()
        answers = await client.rest()
        assert [answer["status"] for answer in answers] == ["ok"] * 3


async def test_three_wrong_tokens_end_the_connection(path: Path, tokens: TokenStore) -> None:
    _, secret = tokens.create("admin")
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        client = await bridge.client(bridge.port)
        client.send(f"AUTH x\nAUTH y\nAUTH z\nAUTH {secret}\nPING\n")
        answers = await client.rest()
        assert [answer["code"] for answer in answers] == ["refused"] * 3
        assert (await (await bridge.client(bridge.port)).ask(f"AUTH {secret}"))["status"] == "ok"


async def test_revoked_and_expired_tokens_are_wrong(path: Path, tmp_path: Path) -> None:
    now = 0.0
    tokens = TokenStore(tmp_path / "tokens.json", now=lambda: now)
    revoked_id, revoked = tokens.create("admin")
    _, expired = tokens.create("admin", expires_s=10)
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        tokens.revoke(revoked_id)
        now = 11.0
        client = await bridge.client(bridge.port)
        assert (await client.ask(f"AUTH {revoked}"))["code"] == "refused"
        assert (await client.ask(f"AUTH {expired}"))["code"] == "refused"


async def test_a_damaged_token_file_refuses_and_says_why(path: Path, tokens: TokenStore, tmp_path: Path) -> None:
    _, secret = tokens.create("admin")
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        (tmp_path / "tokens.json").write_text("{")
        client = await bridge.client(bridge.port)
        assert (await client.ask(f"AUTH {secret}"))["code"] == "bad_config"
        assert (await client.ask("PING"))["code"] == "refused"


async def test_who_does_not_authenticate_in_time_is_sent_away(path: Path, tokens: TokenStore) -> None:
    tokens.create("admin")
    settings = BridgeSettings(auth_timeout_s=0.5)
    async with running_bridge(path, listen=LOCAL, tokens=tokens, settings=settings) as bridge:
        (answer,) = await (await bridge.client(bridge.port)).rest()
        assert answer["code"] == "refused"


async def test_who_has_authenticated_stays(path: Path, tokens: TokenStore) -> None:
    _, secret = tokens.create("admin")
    settings = BridgeSettings(auth_timeout_s=0.5)
    async with running_bridge(path, listen=LOCAL, tokens=tokens, settings=settings) as bridge:
        client = await bridge.client(bridge.port)
        await client.ask(f"AUTH {secret}")
        late = await bridge.client(bridge.port)
        await late.rest()
        assert (await client.ask("PING"))["data"] == "pong"


async def test_the_unix_socket_needs_no_token(path: Path, tokens: TokenStore) -> None:
    tokens.create("admin")
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        client = await bridge.client()
        assert (await client.ask("PING"))["data"] == "pong"
        assert (await client.ask("AUTH whatever"))["status"] == "ok"


async def test_the_clients_authenticate(path: Path, tokens: TokenStore) -> None:
    _, secret = tokens.create("infer")
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        async with AsyncBridge.connect(bridge.server.addresses[1], token=secret) as client:
            assert await client.infer("hello") == "hello"
            with pytest.raises(Refused, match="scope admin"):
                await client.quit()
        with pytest.raises(Refused, match="wrong"):
            await AsyncBridge.connect(bridge.server.addresses[1], token="llb_wrong")
        with pytest.raises(Refused, match="AUTH"):
            await AsyncBridge.connect(bridge.server.addresses[1])


@pytest.mark.parametrize("with_store", [False, True])
async def test_a_listener_without_tokens_does_not_start(path: Path, tokens: TokenStore, with_store: bool) -> None:
    server = BridgeServer(FakeDoor(), path, listen=LOCAL, tokens=tokens if with_store else None)
    with pytest.raises(Refused, match="llamboctl token create --scope infer"):
        await server.start()
    assert not path.exists()


@pytest.mark.parametrize("dial", ["127.0.0.1:80", "tcp!127.0.0.1", "tcp!!80", "tcp!h!99999", "tcp!h!x", "udp!h!1"])
async def test_what_is_no_tcp_address_is_told(path: Path, tokens: TokenStore, dial: str) -> None:
    tokens.create("admin")
    with pytest.raises(BadConfig, match="tcp!HOST!PORT"):
        await BridgeServer(FakeDoor(), path, listen=dial, tokens=tokens).start()


async def test_a_port_in_use_is_named(path: Path, tokens: TokenStore, tmp_path: Path) -> None:
    tokens.create("admin")
    async with running_bridge(path, listen=LOCAL, tokens=tokens) as bridge:
        dial = bridge.server.addresses[1]
        with pytest.raises(NameInUse, match=dial):
            await BridgeServer(FakeDoor(), tmp_path / "other.sock", listen=dial, tokens=tokens).start()


async def test_a_listener_for_everybody_warns_that_there_is_no_tls(
    path: Path, tokens: TokenStore, caplog: pytest.LogCaptureFixture
) -> None:
    tokens.create("admin")
    with caplog.at_level(logging.WARNING, "llambo.bridge"):
        async with running_bridge(path, listen="tcp!0.0.0.0!0", tokens=tokens):
            assert "no TLS" in caplog.text
        caplog.clear()
        async with running_bridge(path, listen=LOCAL, tokens=tokens):
            assert not caplog.records
