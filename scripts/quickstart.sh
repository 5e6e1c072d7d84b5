#!/usr/bin/env bash
# The main job on a fresh machine: set up, build, and let a small model answer questions about a long document, read with
# dense and with sparse attention.
set -euo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh
[ -f dist/cli.js ] && [ -z "$(find src shaders package.json -newer dist/cli.js -print -quit)" ] || npm run --silent build >&2
exec node dist/cli.js ask "$@"
