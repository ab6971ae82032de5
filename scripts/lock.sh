#!/bin/sh
# Writes requirements/{run,test,check}.txt anew from pyproject.toml.
#
#   scripts/lock.sh                     keeps every pinned version that still fits (run it after a change of dependencies)
#   scripts/lock.sh --upgrade           takes the newest versions that fit
#   scripts/lock.sh -P NAME             takes the newest version of NAME only
#
# Needs uv on PATH and a package registry. The files hold names, versions and hashes for every platform and every
# Python from 3.11 on; they name no registry, so that a mirror serves as well as the original.
#
# check.txt (everything) is solved first and constrains the other two: one version of a package in all three files,
# so that going from `run` to `test` adds packages and changes none.
set -eu

root=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$root"

command -v uv >/dev/null 2>&1 || { printf 'scripts/lock.sh: needs uv on PATH (pip install uv)\n' >&2; exit 1; }

# The build backend (and what it asks for to build an editable wheel) is locked like everything else, because the
# editable install runs without build isolation (docs/decisions/0003-hash-pinned-requirements.md).
build_requires=$(sed -n 's/^requires = \["\(.*\)"\]$/\1/p' pyproject.toml)
[ -n "$build_requires" ] || { printf 'scripts/lock.sh: no [build-system] requires in pyproject.toml\n' >&2; exit 1; }

compile() { # compile OUTPUT ARGS…
    output=$1
    shift
    printf '%s\neditables\n' "$build_requires" | uv pip compile pyproject.toml - --quiet --universal --python-version 3.11 \
        --generate-hashes --no-emit-index-url --no-annotate --output-file "requirements/$output" \
        --custom-compile-command scripts/lock.sh "$@" >/dev/null
}

compile check.txt --extra test --extra check "$@"
compile test.txt --extra test --constraint requirements/check.txt
compile run.txt --constraint requirements/check.txt

grep -c '==' requirements/run.txt requirements/test.txt requirements/check.txt
