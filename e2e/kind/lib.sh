# Sourced by the scripts of the kind suite: where things are kept, and how a costly thing is made only once.
# What a script is asked for goes to standard output, what it does and how long that took to standard error.
set -euo pipefail
export LC_ALL=C

e2e=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${PINHOLE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/pinhole}
# Of a running suite: sockets, process ids, the cluster's kubeconfig. Short, because a socket's path is limited to 107 bytes.
# A second suite on the same machine, from another checkout say: E2E_SUITE=name.
suite=pinhole-e2e${E2E_SUITE:+-$E2E_SUITE}
run=/run/$suite
# Of its docker daemon.
storage=$cache/docker${E2E_SUITE:+-$E2E_SUITE}
# Beside somebody else's daemon one need not be root.
[ -z "${E2E_DOCKER_HOST:-}" ] || run=${XDG_RUNTIME_DIR:-/tmp}/$suite-$(id -u)
cluster=pinhole

say() { printf '%s\n' "$*" >&2; }
fail() {
    say "$(basename "$0"): $*"
    exit 1
}

# A hash of files and of what else decides a result.
hash_of() { # [FILE|WORD]...
    local each
    for each in "$@"; do
        if [ -f "$each" ]; then cat "$each"; else printf '%s\n' "$each"; fi
    done | sha256sum | cut -c1-16
}

# Prints the directory that holds the result of FUNCTION, called with a directory to fill when there is none for this
# hash. Two runs at once make it once; a run that dies leaves nothing that looks finished.
stored() { # STORE HASH FUNCTION
    local store=$cache/$1 target=$cache/$1/$2 began=$SECONDS
    if [ ! -d "$target" ]; then
        mkdir -p "$store"
        exec 9>"$store/lock"
        flock --nonblock 9 || { say "$1: another run is making it, waiting"; flock 9; }
        if [ ! -d "$target" ]; then
            rm -rf --one-file-system "$target.partial"
            mkdir "$target.partial"
            # Not in a condition: there the shell would go on after a command that fails.
            ( "$3" "$target.partial" ) >&2
            mv "$target.partial" "$target"
            say "$1: made in $((SECONDS - began)) s"
            # What nobody has used for a month makes room.
            find "$store" -mindepth 1 -maxdepth 1 -type d -mtime +30 -exec rm -rf --one-file-system {} +
        fi
        exec 9>&-
    fi
    touch "$target"
    echo "$target"
}

as_root() {
    [ "$(id -u)" = 0 ] || fail "needs root, for network namespaces and containers of its own; or name a docker daemon: E2E_DOCKER_HOST=unix:///var/run/docker.sock"
}
