#!/bin/sh
# What a developer or operator does with a checkout: set it up, test it, check it, run a bridge from it.
# `./deploy.sh help` lists the commands. Every one sets up first what it needs, once.
set -eu

usage() {
    cat <<'END'
usage: ./deploy.sh COMMAND [ARGUMENT…]

  set-up [run|test|check]   make .venv ready: to run (default), to test, to test and check
  test [PYTEST ARGUMENT…]   run the tests; without arguments all of them, several at a time
  check                     run the linters, the type checker and the import contracts
  deploy-local              start a bridge with the built-in model, ask it a question, say how to go on
  start-bridge [OPTION…]    start the bridge in the background (llamboctl bridge start)
  stop-bridge               stop it
  status                    show what it has loaded and done
  test-ffi [MODEL]          load MODEL (default: built-in) in a private bridge, and check the plain calls
  test-streaming [MODEL]    the same, and check a streamed answer
  build-bridge [OPTION…]    build the engine for this processor, test it and measure (llamboctl engine build)
END
}

self=$0
while [ -h "$self" ]; do
    target=$(readlink "$self")
    case $target in
        /*) self=$target ;;
        *) self=$(dirname "$self")/$target ;;
    esac
done
case $self in */*) ;; *) self=./$self ;; esac
root=$(CDPATH='' cd -- "${self%/*}/" && pwd -P)
bin=$root/.venv/bin

# shellcheck source=scripts/set-up.sh
. "$root/scripts/set-up.sh"

# --- test and check -------------------------------------------------------------------------------------------------

run_tests() {
    set_up test
    cd "$root"
    # Most tests wait for processes that they have started. The tests of a file stay with one worker, and one that ends
    # its worker would end the next one too.
    [ $# -gt 0 ] || set -- -n logical --maxprocesses 4 --dist loadfile --max-worker-restart 0
    exec "$bin/python" -m pytest "$@"
}

failed=
check_that() { # check_that NAME COMMAND…: runs it; a failure is remembered, so that one run shows them all
    name=$1
    shift
    printf '\n== %s\n' "$name"
    "$@" || failed="$failed $name"
}

# `sh -n` reads without running. Each shell that is here has its own idea of what it can read.
check_syntax() {
    for shell in sh dash "busybox ash" bash; do
        command -v "${shell%% *}" >/dev/null 2>&1 || continue
        for script in limbot-cli deploy.sh scripts/*.sh; do
            # shellcheck disable=SC2086  # "busybox ash" is two words
            $shell -n "$script" || return 1
        done
    done
    if command -v bash >/dev/null 2>&1; then bash -n .ci/run; fi
}

check_scripts() {
    shellcheck=$bin/shellcheck
    [ -x "$shellcheck" ] || shellcheck=$(command -v shellcheck) || { printf 'shellcheck is not here: left out\n'; return 0; }
    "$shellcheck" --external-sources limbot-cli deploy.sh scripts/*.sh .ci/run
}

run_checks() {
    set_up check
    cd "$root"
    check_that ruff-check "$bin/ruff" check .
    check_that ruff-format "$bin/ruff" format --check .
    check_that mypy "$bin/mypy"
    # The set-up runs as a directory, by itself and on its own search path, so it is checked by itself too.
    check_that mypy-set-up "$bin/mypy" scripts/set_up/__main__.py scripts/set_up/environment.py \
        scripts/set_up/installing.py scripts/set_up/machine.py
    check_that import-contracts "$bin/lint-imports"
    check_that shell-syntax check_syntax
    check_that shellcheck check_scripts
    [ -z "$failed" ] || { printf '\nfailed:%s\n' "$failed" >&2; exit 1; }
    printf '\nall checks passed\n'
}

# --- the bridge -----------------------------------------------------------------------------------------------------

control() { # control ARGUMENT…: llamboctl bridge
    set_up run
    exec "$bin/llamboctl" bridge "$@"
}

deploy_local() {
    set_up run
    # --json so that the socket is known whether the bridge was started now or ran already.
    facts=$("$bin/llamboctl" bridge start --json)
    printf '%s\n' "$facts" | "$bin/python" -c '
import json, sys
from llambo import Bridge

facts = json.load(sys.stdin)
question = "What is distributed computing?"
state = "started" if facts["started"] else "runs already"
print("bridge %s on %s (pid %d)\n\n> %s" % (state, facts["socket"], facts["pid"], question))
with Bridge.connect(facts["socket"]) as bridge:
    for token in bridge.stream(question, max_tokens=128):
        print(token.text, end="", flush=True)
print("""

Go on with:
  ./limbot-cli PROMPT         ask a question
  ./deploy.sh status          see what the bridge has loaded and done
  nc -U %s
                              talk to it: PING, STATUS, INFER PROMPT
  ./deploy.sh stop-bridge     stop it""" % facts["socket"])
'
}

build_bridge() { # build_bridge OPTION…: llamboctl engine build
    set_up run
    exec "$bin/llamboctl" engine build "$@"
}

# --------------------------------------------------------------------------------------------------------------------

bad_usage() {
    [ $# -eq 0 ] || printf 'deploy.sh: %s\n' "$*" >&2
    usage >&2
    exit 2
}

[ $# -gt 0 ] || bad_usage
command=$1
shift
case $command in
    set-up)
        case ${1:-run} in run | test | check) ;; *) bad_usage "no such level: $1" ;; esac
        set_up "${1:-run}"
        ;;
    test) run_tests "$@" ;;
    check) run_checks ;;
    deploy-local) deploy_local ;;
    start-bridge) control start "$@" ;;
    stop-bridge) control stop "$@" ;;
    status) control status "$@" ;;
    test-ffi) control test --ffi "$@" ;;
    test-streaming) control test --streaming "$@" ;;
    build-bridge) build_bridge "$@" ;;
    help | -h | --help) usage ;;
    *) bad_usage "no such command: $command" ;;
esac
