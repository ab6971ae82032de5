"""Layers of configuration, and errors that name the place."""

from __future__ import annotations

from pathlib import Path

import pytest

from llambo.core import config
from llambo.core.errors import BadConfig

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def write(tmp_path: Path) -> Path:
    return tmp_path / "c.yaml"


def test_defaults_need_no_file() -> None:
    loaded = config.load()
    assert loaded.settings.models.default == "built-in"
    assert loaded.sources["models.default"] == "default"


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    write: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write.write_text("models:\n  ctx: 100\n  slots: 2\n  threads: 1\n")
    monkeypatch.setenv("LLAMBO_MODELS_SLOTS", "3")
    monkeypatch.setenv("LLAMBO_MODELS_THREADS", "3")
    loaded = config.load(write, {"models.threads": 5, "models.offline": None})
    models = loaded.settings.models
    assert (models.ctx, models.slots, models.threads, models.offline) == (100, 3, 5, False)
    assert loaded.sources["models.ctx"] == f"{write}:2"
    assert loaded.sources["models.slots"] == "environment variable LLAMBO_MODELS_SLOTS"
    assert loaded.sources["models.threads"] == "command line"


def test_the_file_in_the_home_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "cluster-config.yaml").write_text("models: {ctx: 64}\n")
    assert config.load().settings.models.ctx == 64


def test_the_bridge_socket_has_a_short_name_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", "/x/y.sock")
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET_PATH", "/x/z.sock")
    assert config.load().settings.bridge.socket_path == "/x/y.sock"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("models:\n  ctx: 12\n", ":2: models.ctx = 12: input should be greater than or equal to 16"),
        ("bridge:\n  drain_timeout: soon\n", ":2: bridge.drain_timeout = 'soon': expected a duration such as 30s"),
        ("bridge:\n  colour: red\n", ":2: unknown key bridge.colour; there are socket_path, listen"),
        (
            "# comment\nmodel: {}\n",
            ":2: unknown section 'model'; there are cluster, load_balancer, orchestrator, models",
        ),
        ("models: 3\n", ":1: models must hold keys"),
        ("cluster:\n  launcher: ray\n", ":2: cluster.launcher = 'ray': nodes on other machines through Ray are not"),
        ("cluster:\n  launcher: ssh\n", ":2: cluster.launcher = 'ssh': input should be 'local' or 'ray'"),
        (
            "cluster:\n  default_type: huge\n",
            ":2: cluster.default_type = 'huge': there is no such node type; there are",
        ),
        (
            "load_balancer:\n  strategy: best\n",
            ":2: load_balancer.strategy = 'best': input should be 'prefix-affinity'",
        ),
        ("orchestrator:\n  scale_factor: 1\n", ":2: orchestrator.scale_factor = 1: must be greater than 1"),
        ("orchestrator:\n  min_nodes: -1\n", ":2: orchestrator.min_nodes = -1: input should be greater than or"),
        (
            "state:\n  checkpoint_on_change: maybe\n",
            ":2: state.checkpoint_on_change = 'maybe': input should be a valid",
        ),
        ("- 1\n", ":1: expected sections"),
        ("a: [\n", "not valid YAML"),
        ("models:\n  ctx: 1\n  ctx: 2\n", "not valid YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_told_with_its_line(write: Path, text: str, complaint: str) -> None:
    write.write_text(text)
    with pytest.raises(BadConfig) as caught:
        config.load(write)
    assert str(write) in caught.value.message
    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("types", "complaint"),
    [
        ("tiny: {ctx: 8}", ":4: cluster.node_types.tiny.ctx = 8: input should be greater than or equal to 16"),
        ("big: {memory: lots}", ":4: cluster.node_types.big.memory = 'lots': expected a size such as 512MiB, 1GiB"),
        ("big: {memory: true}", ":4: cluster.node_types.big.memory = True: expected a size such as 512MiB, 1GiB"),
        ("tiny: {speed: 3}", ":4: unknown key cluster.node_types.tiny.speed; there are ctx, slots, threads, memory"),
        ("tiny: 3", ":4: cluster.node_types.tiny must hold keys (ctx, slots, threads, memory, weight), not 3"),
        ("Big Type: {ctx: 64}", ":4: cluster.node_types: 'Big Type' is no name of a node type: small letters"),
        ("- tiny", ":2: cluster.node_types must hold node types, such as small: {ctx: 1024}"),
    ],
)
def test_what_is_wrong_in_a_node_type_is_told_with_its_key_and_line(write: Path, types: str, complaint: str) -> None:
    write.write_text(f"cluster:\n  node_types:\n    # some more\n    {types}\n")
    with pytest.raises(BadConfig) as caught:
        config.load(write)
    assert f"{write}{complaint}" in caught.value.message


def test_node_types_of_a_file_add_to_the_presets_and_override_them(write: Path) -> None:
    write.write_text(
        "cluster:\n  default_type: wide\n  node_types:\n    tiny: {slots: 2}\n    wide: {ctx: 9000, memory: 2GB}\n"
    )
    loaded = config.load(write)
    types = loaded.settings.cluster.node_types
    assert list(types) == ["tiny", "medium", "large", "wide"]
    assert (types["tiny"].slots, types["tiny"].ctx, types["tiny"].memory) == (2, 512, 128 * 2**20)
    assert (types["wide"].slots, types["wide"].ctx, types["wide"].memory) == (4, 9000, 2 * 10**9)
    assert config.Cluster().node_types["tiny"].slots == 1
    entries = {key: (value, source) for key, value, source in loaded.entries()}
    assert entries["cluster.node_types.tiny.slots"] == (2, f"{write}:4")
    assert entries["cluster.node_types.tiny.ctx"] == (512, "default")


def test_node_types_can_come_from_the_environment(write: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write.write_text("cluster:\n  node_types:\n    tiny: {slots: 2, ctx: 100}\n")
    monkeypatch.setenv("LLAMBO_CLUSTER_NODE_TYPES", "{tiny: {ctx: 64}}")
    tiny = config.load(write).settings.cluster.node_types["tiny"]
    assert (tiny.slots, tiny.ctx) == (2, 64)
    monkeypatch.setenv("LLAMBO_CLUSTER_NODE_TYPES", "{tiny: {ctx: 1}}")
    with pytest.raises(BadConfig, match=r"environment variable \w+_NODE_TYPES: cluster\.node_types\.tiny\.ctx"):
        config.load(write)


@pytest.mark.parametrize(
    ("written", "listen"),
    [
        ("127.0.0.1:5641", "127.0.0.1:5641"),
        ("'[::1]:0, unix!/run/x.sock'", "[::1]:0,unix!/run/x.sock"),
        ("unix:/run/x.sock", "unix:/run/x.sock"),
        ("'*:80'", "*:80"),
        ("''", ""),
        ("off", ""),
    ],
)
def test_the_gateway_listens_on_ports_and_sockets_or_not_at_all(
    write: Path, monkeypatch: pytest.MonkeyPatch, written: str, listen: str
) -> None:
    monkeypatch.delenv("LLAMBO_GATEWAY_LISTEN")
    write.write_text(f"gateway:\n  listen: {written}\n")
    assert config.load(write).settings.gateway.listen == listen


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("listen: somewhere", ":2: gateway.listen = 'somewhere': 'somewhere' is no address: expected HOST:PORT such"),
        ("listen: '::1:80'", ":2: gateway.listen = '::1:80': '::1:80' is no address: expected HOST:PORT such"),
        ("listen: 127.0.0.1:99999", ":2: gateway.listen = '127.0.0.1:99999': '99999' is no port: expected HOST:PORT"),
        ("listen: 'http://h:80'", ":2: gateway.listen = 'http://h:80': 'http://h:80' is no address"),
        ("listen: 'unix!'", ":2: gateway.listen = 'unix!': 'unix!' names no socket: expected HOST:PORT"),
        ("listen: '127.0.0.1:1,'", ":2: gateway.listen = '127.0.0.1:1,': '' is no address"),
        ("listen: 5641", ":2: gateway.listen = 5641: expected HOST:PORT such as 127.0.0.1:5641"),
        ("max_body: much", ":2: gateway.max_body = 'much': expected a size such as 512MiB"),
        ("max_body: 0", ":2: gateway.max_body = 0: input should be greater than or equal to 1024"),
        ("header_timeout: 0", ":2: gateway.header_timeout = 0: input should be greater than 0"),
        ("cors_origins: chat.example", ":2: gateway.cors_origins = 'chat.example': expected origins such as https://"),
        ("cors_origins: 'https://a.b,*'", ":2: gateway.cors_origins = 'https://a.b,*': expected origins such as"),
        ("cors_origins: 'https://a.b/c'", ":2: gateway.cors_origins = 'https://a.b/c': expected origins such as"),
        ("requests_per_minute: -1", ":2: gateway.requests_per_minute = -1: input should be greater than or equal to 0"),
        ("max_connections: 0", ":2: gateway.max_connections = 0: input should be greater than or equal to 1"),
        ("require_token: perhaps", ":2: gateway.require_token = 'perhaps': input should be a valid boolean"),
        ("tls_key: k.pem", ":2: gateway.tls_key = 'k.pem': gateway.tls_certificate and gateway.tls_key go together"),
        ("tls_certificate: c.pem", ":2: gateway.tls_key = '': gateway.tls_certificate and gateway.tls_key go together"),
    ],
)
def test_what_is_wrong_with_the_gateway_is_told_with_what_was_expected(
    write: Path, monkeypatch: pytest.MonkeyPatch, text: str, complaint: str
) -> None:
    monkeypatch.delenv("LLAMBO_GATEWAY_LISTEN")
    write.write_text(f"gateway:\n  {text}\n")
    with pytest.raises(BadConfig) as caught:
        config.load(write)
    assert f"{write}{complaint}" in caught.value.message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("min_nodes: 5\n  max_nodes: 4", ":3: orchestrator.max_nodes = 4: must be at least orchestrator.min_nodes"),
        ("scale_up_threshold: 0.1", ":2: orchestrator.scale_down_threshold = 0.2: must be below orchestrator.scale_up"),
        ("scale_down_threshold: 0.9", ":2: orchestrator.scale_down_threshold = 0.9: must be below"),
    ],
)
def test_keys_that_do_not_go_together_are_told_where_one_was_given(write: Path, text: str, complaint: str) -> None:
    write.write_text(f"orchestrator:\n  {text}\n")
    with pytest.raises(BadConfig) as caught:
        config.load(write)
    assert f"{write}{complaint}" in caught.value.message


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("512MiB", 2**29),
        ("1GiB", 2**30),
        ("2GB", 2 * 10**9),
        ("1500 kb", 1_500_000),
        (2**20, 2**20),
        ("1.5GiB", 3 * 2**29),
    ],
)
def test_sizes_have_units(write: Path, written: object, size: int) -> None:
    write.write_text(f"cluster:\n  node_types:\n    x: {{memory: {written}}}\n")
    assert config.load(write).settings.cluster.node_types["x"].memory == size


def test_a_missing_file_is_an_error_only_when_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadConfig, match="no such file"):
        config.load(tmp_path / "none.yaml")
    monkeypatch.setenv("LLAMBO_CONFIG", str(tmp_path / "none.yaml"))
    with pytest.raises(BadConfig, match="no such file"):
        config.load()


def test_an_empty_variable_is_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_BRIDGE_SOCKET", "")
    monkeypatch.setenv("LLAMBO_GATEWAY_LISTEN", "")
    monkeypatch.setenv("LLAMBO_MODELS_CTX", "")
    assert config.load().settings == config.Settings()


def test_a_misspelt_variable_of_a_known_section_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLAMBO_MODELS_CONTEXT", "5")
    with pytest.raises(BadConfig, match="environment variable LLAMBO_MODELS_CONTEXT: unknown; models has default"):
        config.load()


@pytest.mark.parametrize(
    ("written", "seconds"), [("30s", 30), ("250ms", 0.25), ("2m", 120), ("1h", 3600), (5, 5), ("1.5 s", 1.5)]
)
def test_durations_have_units(write: Path, written: object, seconds: float) -> None:
    write.write_text(f"bridge:\n  drain_timeout: {written}\n")
    assert config.load(write).settings.bridge.drain_timeout == seconds


def test_the_commented_example_in_the_repository_shows_every_key_at_its_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("LLAMBO_BRIDGE_SOCKET")
    monkeypatch.delenv("LLAMBO_GATEWAY_LISTEN")
    example = config.load(REPOSITORY / "cluster-config.yaml")
    assert example.settings == config.Settings()
    assert "default" not in example.sources.values()


def test_the_package_ships_the_example() -> None:
    shipped = REPOSITORY / "src" / "llambo" / "data" / "cluster-config.yaml"
    assert shipped.read_text() == (REPOSITORY / "cluster-config.yaml").read_text()
