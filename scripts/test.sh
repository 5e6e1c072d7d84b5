#!/usr/bin/env bash
# Sets up, then runs every check and test there is. Ends with one line that adds up all runners.
set -uo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh --tests || exit 1
mkdir -p .build
rm -f .build/vitest.json .build/deno.log
status=0
failed_steps=0
step() { echo; echo "== $*"; "$@" || { echo "FAILED: $*"; status=1; return 1; }; }
check() { step "$@" || failed_steps=$((failed_steps + 1)); }

check npx biome check .
check npx tsc -p .
check npm run --silent build
check npm run --silent build:deno
# Deno runs one test after the other, so it goes beside the rest.
npx deno test -A --no-check .build/deno/suite.test.js >.build/deno.log 2>&1 &
deno=$!
step npx vitest run --project '!matrix' --reporter=default --reporter=json --outputFile.json=.build/vitest.json
echo; echo "== deno test"
# Its exit code does not count: the software driver may abort while the process ends. The summary demands its closing line.
wait "$deno"
cat .build/deno.log

node scripts/summary.mjs .build/vitest.json .build/deno.log "$failed_steps" || status=1
exit "$status"
