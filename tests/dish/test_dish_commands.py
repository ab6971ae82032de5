"""Commands over a small tree on a real socket: what they show, what they tell the cluster, and how they fail."""

from __future__ import annotations

import asyncio

import pytest

from tests.dish.dish_world import World, until


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("ls nodes", "n1/\nn2/\n"),
        ("ls /n/llambo/nodes/n1", "model\n"),
        ("ls /", "n/\n"),
        ("ls /n", "dish/\nllambo/\n"),
        ("cat nodes/*/model", "model of n1\nmodel of n2\n"),
        ("cat nodes/n[2]/model", "model of n2\n"),
        ("echo nodes/*", "nodes/*\n"),
        ("cat status metrics", "state ready\nnodes 2\nslots 4\nbusy 1\nllambo_nodes 2\n"),
        ("status", "state ready\nnodes 2\nslots 4\nbusy 1\n"),
        ("metrics", "llambo_nodes 2\n"),
        ("echo -n a 'b  c'", "a b  c"),
        ("tail -n 2 lines", "line 19\nline 20\n"),
        ("cat lines | tail -n 1", "line 20\n"),
        ("cat < metrics", "llambo_nodes 2\n"),
        ("cat metrics | cat | cat", "llambo_nodes 2\n"),
        ("pwd", "/n/llambo\n"),
        ("cd nodes/n1 ; pwd; cat model; cd; pwd", "/n/llambo/nodes/n1\nmodel of n1\n/n/llambo\n"),
        ("cd ../../n/./dish; pwd; ls", "/n/dish\nhistory\nenv\njobs\n"),
        ("bind nodes/n2 /mine; cat /mine/model; ls /", "model of n2\nmine/\nn/\n"),
        ("scale 3", "n1\nn2\n"),
        ("drain n1", ""),
        ("sessions", "no sessions\n"),
        ("cluster", "* /n/llambo  state ready  nodes 2  slots 4  busy 1\n"),
        ("watch times=2 every=0.1 metrics", "llambo_nodes 2\nllambo_nodes 2\n"),
        ("help cat", "cat [PATH…]\n    shows files, or what is piped to it\n"),
        ("echo $cluster $status", "/n/llambo 0\n"),
    ],
)
async def test_commands_show(world: World, line: str, shown: str) -> None:
    assert await world.run(line) == shown


async def test_ls_tells_kind_rights_and_length(world: World) -> None:
    lines = (await world.run("ls -l")).splitlines()
    assert "-rw-rw-rw- llambo          0 ctl" in lines
    assert "dr-xr-xr-x llambo          0 nodes/" in lines


async def test_nodes_are_a_table(world: World) -> None:
    heading, node = (await world.run("nodes")).splitlines()
    assert heading.split()[:5] == ["ID", "TYPE", "STATE", "MODEL", "SLOTS"]
    assert node.split()[:6] == ["n1", "tiny", "ready", "m", "1/4", "7"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("echo 'scale 3' > /n/llambo/ctl", "scale 3"),
        ("echo drain n1 >> ctl", "drain n1"),
        ("write ctl scale 4", "scale 4"),
        ("echo scale 5 | write ctl", "scale 5"),
        ("echo scale 6 | cat > ctl", "scale 6"),
        ("spawn 2 tiny model='my model' slots=3", "spawn 2 tiny 'model=my model' slots=3"),
        ("kill n1", "kill n1"),
        ("restart n1", "restart n1"),
        ("save /tmp/x", "checkpoint /tmp/x"),
        ("restore", "restore"),
        ("rm nodes/n2", "removed n2"),
    ],
)
async def test_commands_tell_the_cluster(world: World, line: str, told: str) -> None:
    await world.run(line)
    assert world.told == [told]


@pytest.mark.parametrize(
    ("line", "status", "sentence"),
    [
        ("cat nope", 1, "/n/llambo/nope: file does not exist"),
        ("cat /n/nope", 1, "/n/nope: file does not exist"),
        ("cat /n", 2, "/n is a directory; ls lists it"),
        ("cat nodes", 2, "/n/llambo/nodes is a directory; ls lists it"),
        ("cat broken", 1, "the engine is gone: look at its log"),
        ("cd status", 2, "/n/llambo/status is not a directory"),
        ("echo x > status", 4, "permission denied"),
        ("echo refuse > ctl", 2, "refuse: that is not done here"),
        ("fusion", 2, "fusion has nothing to read; write: fusion [STRATEGY [N]] [NAME=VALUE…] PROMPT"),
        ("fusion quorum 3 ''", 2, "fusion needs a prompt"),
        ("status now", 2, "status takes no arguments; write: status"),
        ("bind a", 2, "bind needs more arguments; write: bind SOURCE NAME"),
        ("bind nope /x", 1, "/n/llambo/nope: file does not exist"),
        ("bind / /x", 2, "/ belongs to no mounted tree: bind a file or directory of one"),
        ("bind nodes /n/llambo", 4, "/n/llambo is taken by"),
        ("umount /n/nope", 1, "nothing is mounted on /n/nope; there are /n/dish, /n/llambo"),
        ("umount /n/dish", 2, "/n/dish is this shell's own and stays"),
        ("rm /n/llambo", 4, "/n/llambo: permission denied"),
        ("cat", 2, "cat has nothing to read; write: cat [PATH…]"),
        ("infer temperature=1", 2, "infer has nothing to read"),
        ("infer ''", 2, "infer needs a prompt"),
        ("tail -n x lines", 2, "tail -n takes a whole number"),
        ("watch every=0 status", 2, "watch: every is 0.1 to 86400 seconds, not '0'"),
        ("watch exit", 2, "watch takes a command that shows something, not exit"),
        ("help me write a poem", 2, "help knows one command at a time"),
        ("exit x", 2, "exit takes a status from 0 to 255, not 'x'"),
        ("fg", 1, "there are no jobs"),
        ("kill %1", 1, "there is no job %1; jobs are none"),
        ("kill %x", 2, "'%x' is no job: write %N"),
        ("mount nonsense /n/x", 2, "'nonsense' is no address"),
        ("mount unix!/nowhere/s /n/x", 3, "nothing answers at unix!/nowhere/s"),
        ("mount a /n/llambo", 2, "/n/llambo is taken; umount /n/llambo first"),
        ("mount tcp!h!1 /n/x token_env=NO_SUCH", 2, "the environment variable NO_SUCH is not set"),
        ("status=3", 2, "status is set by dish itself"),
        ("echo 'nonsense line' > /n/dish/env", 2, "'nonsense line' is no NAME=VALUE"),
        ("ls; cat 'x", 2, "the quote ' is not closed; inside it ' is written '' (position 9)"),
        ("cat nope | infer sum up", 1, "/n/llambo/nope: file does not exist"),
        ("cat nope | cat | infer sum up", 1, "/n/llambo/nope: file does not exist"),
    ],
)
async def test_what_fails_says_why_and_has_its_status(world: World, line: str, status: int, sentence: str) -> None:
    found, (complaint,) = await world.try_line(line)
    assert complaint.startswith(sentence)
    assert found == status
    assert world.asked == []


async def test_the_first_failure_ends_a_line_and_is_its_status(world: World) -> None:
    assert await world.try_line("echo a; cat nope; echo b") == (1, ["/n/llambo/nope: file does not exist"])
    assert world.shown() == "a\n"
    assert await world.run("echo $status") == "1\n"


async def test_a_script_ends_at_its_first_failure_and_names_the_line(world: World) -> None:
    script = "# a script\necho one\n\ncat \\\n  nope\necho two\n"
    assert await world.interpreter.script(script, "my.dish") == 1
    assert world.shown() == "one\n"
    assert world.complaints == ["my.dish:4: /n/llambo/nope: file does not exist"]


async def test_exit_ends_a_script_with_its_status(world: World) -> None:
    assert await world.interpreter.script("echo a; exit 7; echo b\necho c") == 7
    assert world.shown() == "a\n"


async def test_variables_are_set_and_shown_and_are_files(world: World) -> None:
    await world.run("name='my node'")
    assert await world.run('echo "<$name>"') == "<my node>\n"
    await world.run("echo other=2 > /n/dish/env")
    text = await world.run("cat /n/dish/env")
    assert "name='my node'\nother=2\n" in text
    assert "cwd=/n/llambo\n" in text
    await world.run("name=")
    assert "name=" not in await world.run("cat /n/dish/env")


async def test_the_own_files_show_history_and_jobs(world: World) -> None:
    world.dish.history += ["ls", "status"]
    assert await world.run("cat /n/dish/history") == "ls\nstatus\n"
    await world.run("cat events &")
    assert await world.run("cat /n/dish/jobs") == "%1 running  cat events\n"
    assert await world.run("jobs") == "%1 running  cat events\n"


async def test_a_second_cluster_stands_beside_the_first(world: World) -> None:
    await world.run(f"mount {world.address} /n/other nodes")
    assert await world.run("ls /n/other") == "n1/\nn2/\n"
    assert f"{world.address} nodes on /n/other\n" in await world.run("mount")
    await world.run("umount /n/other")
    assert (await world.try_line("ls /n/other"))[0] == 1
    await world.run(f"mount {world.address} /n/other; cluster /n/other")
    assert "* /n/other  state ready" in await world.run("cluster")
    await world.run("cd nodes; scale 3")
    assert world.told == ["scale 3"]


async def test_what_a_bind_uses_is_not_unmounted(world: World) -> None:
    await world.run(f"mount {world.address} /n/other; bind /n/other/nodes /nodes")
    assert await world.try_line("umount /n/other") == (4, ["/n/other is in use: umount /nodes first"])
    await world.run("umount /nodes; umount /n/other")


async def test_tail_shows_what_is_there_and_goes_on(world: World) -> None:
    running = asyncio.ensure_future(world.interpreter.line("tail events"))
    await until(lambda: len(world.events) == 1)
    world.events.send("first")
    await until(lambda: b"first\n" in world.out.data)
    world.events.send("second")
    await until(lambda: world.out.data.endswith(b"first\nsecond\n"))
    running.cancel()
    await asyncio.wait({running})
    await until(lambda: len(world.events) == 0)


async def test_a_pipeline_whose_reader_fails_ends(world: World) -> None:
    status, (complaint,) = await world.try_line("cat events | cat > nope")
    assert (status, complaint) == (1, "/n/llambo/nope: file does not exist")
    await until(lambda: len(world.events) == 0)


async def test_a_writer_without_a_reader_ends_without_complaint(world: World) -> None:
    world.lines = "x" * (1 << 22)
    assert await world.run("cat lines | echo done") == "done\n"


async def test_a_lost_server_is_dialled_anew(world: World) -> None:
    await world.run("status")
    place = world.mounts.find("/n/llambo/status")
    assert place is not None
    client = await place.files.client()  # type: ignore[attr-defined]
    await client.close()
    assert (await world.try_line("status"))[0] == 3
    assert (await world.run("status")).startswith("state ready")


# --- questions ------------------------------------------------------------------------------------------------------


async def test_infer_asks_one_question_in_a_session_of_its_own(world: World) -> None:
    assert await world.run("infer max_tokens=5 system='be terse' What is 2+2?") == "you said: What is 2+2?\n"
    assert await world.run("cat metrics | infer Explain unknown=1") == (
        "you said: llambo_nodes 2\n\nExplain unknown=1\n"
    )
    assert world.asked == [("0", "What is 2+2?"), ("1", "llambo_nodes 2\n\nExplain unknown=1")]
    assert world.settings["0"] == ["max_tokens 5", "system be terse"]
    await until(lambda: not list(world.sessions.entries()))


async def test_a_line_that_is_no_command_goes_on_with_the_conversation(world: World) -> None:
    await world.run("temperature=0")
    assert await world.run("What's a <node> | slot?") == "you said: What's a <node> | slot?\n"
    await world.run("ask and what is $session?")
    assert world.asked == [("0", "What's a <node> | slot?"), ("0", "and what is 0?")]
    assert world.settings["0"] == ["temperature 0"]
    assert "0        idle   n1    2" in await world.run("sessions")
    assert "this shell's" in await world.run("sessions")


async def test_an_answer_can_be_redirected_and_piped(world: World) -> None:
    await world.run("infer Hi > notes")
    assert "".join(world.notes) == "you said: Hi\n"
    assert await world.run("infer Hi | tail -n 1") == "you said: Hi\n"


async def test_an_interrupted_question_keeps_the_conversation(world: World) -> None:
    world.gate.clear()
    running = asyncio.ensure_future(world.interpreter.line("one"))
    await until(lambda: b"you said: " in world.out.data)
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    world.gate.set()
    assert (await world.run("two")).endswith("you said: two\n")
    assert world.asked == [("0", "one"), ("0", "two")]


# --- jobs -----------------------------------------------------------------------------------------------------------


async def test_a_job_runs_beside_others_and_its_output_comes_with_fg(world: World) -> None:
    world.gate.clear()
    assert await world.run("infer later &") == ""
    await until(lambda: world.asked)
    assert await world.run("echo now") == "now\n"
    assert await world.run("jobs") == "%1 running  infer later\n"
    world.gate.set()
    assert await world.run("fg %1") == "you said: later\n"
    assert await world.run("jobs") == ""


async def test_a_killed_job_ends_its_question(world: World) -> None:
    world.gate.clear()
    await world.run("infer never &; cat events &")
    await until(lambda: world.asked and len(world.events))
    await world.run("kill %1")
    await until(lambda: not list(world.sessions.entries()))
    assert await world.run("jobs") == "%2 running  cat events\n"
    await world.run("kill %2")
    await until(lambda: len(world.events) == 0)


async def test_a_job_that_fails_says_why(world: World) -> None:
    await world.run("cat nope &")
    await until(lambda: world.dish.jobs.find("%1").state == "failed")
    assert await world.run("jobs") == "%1 failed   cat nope  (/n/llambo/nope: file does not exist)\n"
    assert await world.try_line("fg") == (1, ["/n/llambo/nope: file does not exist"])


async def test_a_script_waits_for_its_jobs_and_fails_with_them(world: World) -> None:
    assert await world.interpreter.script("infer slow &\ncat nope &\necho first") == 1
    assert world.shown() == "first\nyou said: slow\n"
    assert world.complaints == ["%2: /n/llambo/nope: file does not exist"]


async def test_a_token_that_is_typed_is_refused_and_one_of_the_environment_is_not_shown(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, (complaint,) = await world.try_line(f"mount {world.address} /n/x llb_abc")
    assert status == 2
    assert "token_env=VAR" in complaint
    monkeypatch.setenv("MY_TOKEN", "llb_abc")
    await world.run(f"mount {world.address} /n/x token_env=MY_TOKEN")
    assert world.anames[-1] == "llb_abc"
    assert "llb_abc" not in await world.run("mount")


async def test_a_line_that_is_no_unicode_is_refused(world: World) -> None:
    assert await world.try_line("echo \udcff") == (2, ["the line is not valid Unicode text (position 5)"])


async def test_a_server_of_another_kind_is_told_apart(world: World) -> None:
    await world.run("bind metrics /x/nodes.json; bind status /x/status; cluster /x")
    status, (complaint,) = await world.try_line("nodes")
    assert status == 1
    assert complaint.startswith("/x/nodes.json is no list of nodes")
