"""`limbot PROMPT` as people and scripts run it, with the built-in model."""

from __future__ import annotations

import json
import os
import pty
import re
import shlex
import signal
import socket
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.cli.programs import command, on_a_terminal, run, start

QUESTION = "What is distributed computing?"
GREEDY = ("--temperature", "0", "--max-tokens", "24")


def test_a_question_is_answered_on_standard_output_and_nothing_is_left(tmp_path: Path) -> None:
    done = run("limbot", QUESTION)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"computers|machines|network", done.stdout)
    assert done.stdout.endswith("\n")
    assert not list((tmp_path / "home" / "run").glob("*"))


def test_the_same_seed_gives_the_same_answer() -> None:
    first, second = (run("limbot", "--seed", "7", "--max-tokens", "40", QUESTION).stdout for _ in range(2))
    assert first == second != ""


def test_json_is_one_document_with_the_promised_keys() -> None:
    done = run("limbot", "--json", *GREEDY, QUESTION)
    document = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert set(document) >= {
        "text",
        "finish_reason",
        "model",
        "node",
        "tokens",
        "prompt_tokens",
        "cached_tokens",
        "ttft_ms",
        "time_ms",
        "failovers",
        "fusion",
    }
    assert (document["model"], document["finish_reason"], document["tokens"]) == ("built-in", "length", 24)
    assert document["text"] == run("limbot", *GREEDY, QUESTION).stdout.rstrip("\n")


@pytest.mark.parametrize("arguments", [("-",), ()])
def test_standard_input_can_be_the_prompt(arguments: tuple[str, ...]) -> None:
    assert run("limbot", *GREEDY, *arguments, stdin=QUESTION).stdout == run("limbot", *GREEDY, QUESTION).stdout


def test_a_pipe_and_a_prompt_are_text_and_question() -> None:
    both = run("limbot", *GREEDY, "--json", "Summarise.", stdin="Some text.\n")
    one = run("limbot", *GREEDY, "--json", "Some text.\n\nSummarise.")
    prompt_tokens = [json.loads(done.stdout)["prompt_tokens"] for done in (both, one)]
    assert prompt_tokens[0] == prompt_tokens[1]
    assert json.loads(both.stdout)["text"] == json.loads(one.stdout)["text"]


def test_a_system_prompt_and_a_raw_prompt_change_what_the_model_sees() -> None:
    counts = [
        json.loads(run("limbot", "--json", *GREEDY, *more, QUESTION).stdout)["prompt_tokens"]
        for more in ((), ("-s", "Be brief."), ("--raw-prompt",))
    ]
    assert counts[2] < counts[0] < counts[1]


def test_a_model_can_be_a_path(walk_model: Path) -> None:
    done = run("limbot", "--json", *GREEDY, "-m", walk_model, "hello")
    assert json.loads(done.stdout)["model"] == "walk"


@pytest.mark.parametrize(
    ("arguments", "stdin", "status", "complaint"),
    [
        ((), None, 2, "the prompt is empty"),
        (("",), None, 2, "the prompt is empty"),
        (("-",), b"\xff\xfe", 2, "is not UTF-8 text (byte 0)"),
        (("--max-tokens", "0", "hi"), None, 2, "max_tokens must be between 1 and"),
        (("--max-tokens", "-1", "hi"), None, 2, "max_tokens must be between 1 and"),
        (("--max-tokens", "1e9", "hi"), None, 2, "--max-tokens"),
        (("--temperature", "abc", "hi"), None, 2, "--temperature"),
        (("--temperature", "nan", "hi"), None, 2, "temperature must be between"),
        (("--config", "/nonexistent.yaml", "hi"), None, 2, "no such file"),
        (("-m", "/nonexistent.gguf", "hi"), None, 1, "no such file"),
        (("-m", "/tmp", "hi"), None, 1, "directory"),
        (("--frobnicate", "hi"), None, 2, "--frobnicate"),
    ],
)
def test_bad_input_is_one_clear_line_and_a_status(
    arguments: tuple[str, ...], stdin: bytes | None, status: int, complaint: str
) -> None:
    done = run("limbot", *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (status, "")
    assert complaint in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_over_the_context_gives_both_numbers() -> None:
    done = run("limbot", "-", stdin="word " * 5000)
    assert done.returncode == 2
    assert re.search(r"the prompt has \d+ tokens and the context holds \d+", done.stderr)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_it_at_once_with_nothing_left(number: int, status: int, walk_model: Path, tmp_path: Path) -> None:
    process = start("limbot", "--raw", "-m", walk_model, "--temperature", "0", "hello", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.read(1)  # it streams, and would for thousands of tokens
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) == 2
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (status, b"")
    assert not psutil.wait_procs(children, timeout=30)[1]
    assert not list((tmp_path / "home" / "run").glob("*"))


def test_ctrl_c_while_it_starts_is_quiet_too() -> None:
    process = start("limbot", QUESTION, stdin=subprocess.DEVNULL)
    while process.poll() is None and not psutil.Process(process.pid).children():
        pass
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert (process.returncode, output, errors) == (130, b"", b"")


def test_ctrl_c_during_a_download_that_stalls_ends_it_at_once() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        reference = f"http://127.0.0.1:{server.getsockname()[1]}/x.gguf"
        process = start("limbot", "-m", reference, "hi", stdin=subprocess.DEVNULL)
        connection, _ = server.accept()
        with connection:
            connection.recv(1)  # it asks, and nobody answers
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in errors


def test_a_prompt_that_is_no_text_is_refused() -> None:
    done = subprocess.run(
        [*command("limbot"), b"\xff\xfe hi"], stdin=subprocess.DEVNULL, capture_output=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert b"is not valid Unicode text" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_reader_that_has_had_enough_is_no_crash(walk_model: Path) -> None:
    process = start("limbot", "-m", walk_model, "--temperature", "0", "hello", stdin=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), errors) == (1, b"")


@pytest.mark.parametrize(
    ("redirection", "complaint"),
    [(">&-", "standard output is closed"), (">/dev/full", "the system refused: No space left on device")],
)
def test_output_that_cannot_be_written_is_told(redirection: str, complaint: str) -> None:
    line = f"{shlex.join(command('limbot', *GREEDY, QUESTION))} {redirection}"
    done = subprocess.run(["sh", "-c", line], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode().startswith(f"limbot: {complaint}")
    assert done.stderr.count(b"\n") == 1


def test_a_closed_standard_input_is_no_obstacle() -> None:
    line = f"{shlex.join(command('limbot', *GREEDY, QUESTION))} <&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout


def test_on_a_terminal_the_answer_is_rendered_and_the_spinner_removed() -> None:
    drawn = on_a_terminal("limbot", *GREEDY, QUESTION)
    assert "\x1b[" in drawn
    assert "thinking" in drawn
    assert drawn.rindex("thinking") < len(drawn) - 100
    assert drawn.count("\x1b[?25l") == drawn.count("\x1b[?25h"), "the cursor is shown again"


def test_raw_on_a_terminal_is_the_plain_text() -> None:
    plain = run("limbot", *GREEDY, QUESTION).stdout.strip()
    drawn = on_a_terminal("limbot", "--raw", *GREEDY, QUESTION).replace("\r\n", "\n")
    assert plain in drawn


def test_no_prompt_on_a_terminal_says_what_to_type() -> None:
    main, other = pty.openpty()
    done = subprocess.run(command("limbot"), stdin=other, capture_output=True, text=True, check=False)
    os.close(main)
    os.close(other)
    assert done.returncode == 2
    assert 'limbot "What is a node?"' in done.stderr


def test_the_running_bridge_answers_when_it_has_the_model(tmp_path: Path, walk_model: Path) -> None:
    assert run("llamboctl", "bridge", "start", "--model", walk_model).returncode == 0
    try:
        by_default = json.loads(run("limbot", "--json", *GREEDY, "hello").stdout)
        relative = os.path.relpath(walk_model)
        by_path = json.loads(run("limbot", "--json", *GREEDY, "-m", relative, "hello").stdout)
        elsewhere = json.loads(run("limbot", "--json", *GREEDY, "-m", "built-in", QUESTION).stdout)
        assert (by_default["model"], by_path["model"], elsewhere["model"]) == ("walk", "walk", "built-in")
        status = json.loads(run("llamboctl", "bridge", "status", "--json").stdout)
        assert status["requests"] == 2, "the other answer came from a private node"
    finally:
        assert run("llamboctl", "bridge", "stop").returncode == 0
    assert not (tmp_path / "bridge.sock").exists()
