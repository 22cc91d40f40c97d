#!/usr/bin/env bash
# Tests the built binary with third-party clients: vscode-jsonrpc over stdio and WebSocket, and Python's websockets.
#
#     tests/interop/interop.sh [BINARY]        BINARY defaults to target/release/souffleur
#
# Needs node 18 or later with npm, python3 with venv, and on the first run access to both package registries. Installs
# into target/interop. Nothing is skipped: a missing program or a failed check ends the script with a non-zero status.
set -euo pipefail

cd "$(dirname "$0")/../.."
binary=$(realpath -m "${1:-target/release/souffleur}")
work=$PWD/target/interop

fail() {
    echo "interop: $1" >&2
    exit 1
}

[[ -x $binary ]] || fail "$binary does not exist: run cargo build --release"
command -v node >/dev/null || fail "node is not installed"
command -v npm >/dev/null || fail "npm is not installed"
command -v python3 >/dev/null || fail "python3 is not installed"
node -e 'process.exit(Number(process.versions.node.split(".")[0]) >= 18 ? 0 : 1)' || fail "node $(node --version) is too old: it must be 18 or later"

mkdir -p "$work"
# Copied, so that a run leaves no files in the source tree.
rm -rf "$work/node"
cp -r tests/interop/node "$work/node"
(cd "$work/node" && npm ci --no-audit --no-fund --loglevel=error)

[[ -x $work/venv/bin/pip ]] || python3 -m venv "$work/venv" || fail "python3 has no venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check --requirement tests/interop/python/requirements.txt

node "$work/node/stdio.js" "$binary"
node "$work/node/websocket.js" "$binary"
"$work/venv/bin/python" tests/interop/python/websocket.py "$binary"
echo "interop: all passed"
