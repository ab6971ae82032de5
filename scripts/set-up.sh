# shellcheck shell=sh
# Decides whether this checkout is set up, and has it set up when it is not. Sourced by limbot-cli and deploy.sh, which
# set $root (absolute, no symbolic links) first. POSIX sh; runs under dash and busybox ash.
#
# A set-up has a level: run (what Llambo needs), test (and what its tests need), check (and the linters). Each has its
# lock file requirements/LEVEL.txt and, once everything of it is in place, its stamp .venv/.llambo-LEVEL.
#
# Every start of Llambo passes through is_set_up, so it starts one process (cksum) and no Python. The work itself is
# done by scripts/set_up, which calls is_set_up (has another call done it meanwhile?) and fingerprint from here: one place
# knows what a stamp says.
: "${root:?the checkout, set by who sources this}"

# The stamp's text: what the set-up depends on. The paths are absolute, so a checkout that moved does not match either
# (the scripts in .venv/bin name their interpreter by its absolute path).
fingerprint() { # fingerprint LEVEL
    cksum "$root/pyproject.toml" "$root/requirements/$1.txt"
}

read_stamp() { # read_stamp FILE: sets $stamp_text
    stamp_text=
    while IFS= read -r line; do
        stamp_text=$stamp_text${stamp_text:+"
"}$line
    done <"$1"
}

# A directory that changed after the stamp was written: something was added to or removed from the environment by other
# hands. Looks at the packages' own directories and no deeper: that much costs under a millisecond.
is_touched() { # is_touched STAMP
    for directory in "$root"/.venv/bin/ "$root"/.venv/lib/python3.*/site-packages/ \
        "$root"/.venv/lib/python3.*/site-packages/*/; do
        # shellcheck disable=SC3013  # -nt came into POSIX in 2024; dash, ash, bash, ksh and zsh have long had it
        if [ ! -d "$directory" ] || [ "$directory" -nt "$1" ]; then
            return 0
        fi
    done
    return 1
}

# .venv/bin/python is a symbolic link to the Python that made the environment, under its full versioned name, so -x
# also notices that this Python was removed or replaced by another version.
is_set_up() { # is_set_up LEVEL
    stamp=$root/.venv/.llambo-$1
    [ -f "$stamp" ] && [ -x "$root/.venv/bin/python" ] && [ -x "$root/.venv/bin/limbot" ] || return 1
    read_stamp "$stamp"
    [ "$(fingerprint "$1")" = "$stamp_text" ] || return 1
    ! is_touched "$stamp"
}

# Only running a Python tells whether it works: a pyenv shim, for one, is there and fails.
is_usable_python() { # is_usable_python COMMAND
    "$1" -I -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

python_version_of() { # python_version_of COMMAND
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || printf 'does not run'
}

find_python() { # sets $python
    if [ -n "${LLAMBO_PYTHON:-}" ]; then
        python=$LLAMBO_PYTHON
        is_usable_python "$python" && return 0
        printf 'llambo: LLAMBO_PYTHON is %s (%s), and Llambo needs Python 3.11 or newer\n' \
            "$python" "$(python_version_of "$python")" >&2
        return 1
    fi
    found=
    for python in python3.14 python3.13 python3.12 python3.11 python3 python; do
        command -v "$python" >/dev/null 2>&1 || continue
        is_usable_python "$python" && return 0
        found="$found${found:+, }$python ($(python_version_of "$python"))"
    done
    printf 'llambo: Python 3.11 or newer is needed; found %s\n' "${found:-none}" >&2
    printf 'llambo: install it (Debian, Ubuntu: apt install python3 python3-venv; Fedora: dnf install python3; %s\n' \
        'Alpine: apk add python3; Arch: pacman -S python; macOS: brew install python) or name one in LLAMBO_PYTHON' >&2
    return 1
}

set_up() { # set_up LEVEL
    is_set_up "$1" && return 0
    find_python || exit 1
    "$python" -I "$root/scripts/set_up" "$1" || exit $?
}
