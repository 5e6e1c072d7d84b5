#!/usr/bin/env bash
# Sets up, then runs every check and test there is. Ends with one line that adds up all runners.
set -uo pipefail
cd "$(dirname "$0")/.."
bash scripts/setup.sh --tests || exit 1
mkdir -p .build
rm -f .build/reference.json .build/others.json .build/deno.log
status=0
failed_steps=0
step() { echo; echo "== $*"; "$@" || { echo "FAILED: $*"; status=1; return 1; }; }
check() { step "$@" || failed_steps=$((failed_steps + 1)); }
projects() { # NAME PROJECT...: the tests of these projects, with results in .build/NAME.json
  local name=$1; shift
  step npx vitest run "${@/#/--project=}" --reporter=default --reporter=json --outputFile.json=".build/$name.json"
}

check npx biome check .
check npx tsc -p .
check npm run --silent build
check npm run --silent build:deno
projects reference demo gpu null emulated unit
# Everything else runs one test after the other, on one device: Deno beside the rest.
npx deno test -A --no-check .build/deno/suite.test.js >.build/deno.log 2>&1 &
deno=$!
projects others swiftshader browser
echo; echo "== deno test"
# Its exit code does not count: the software driver may abort while the process ends. The summary demands its closing line.
wait "$deno"
cat .build/deno.log

node scripts/summary.mjs "$failed_steps" .build/deno.log .build/reference.json .build/others.json || status=1
exit "$status"
