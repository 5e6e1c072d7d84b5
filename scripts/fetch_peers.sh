#!/usr/bin/env bash
# Fetches what `bench suite` and `bench model --peers` measure beside this project, into a folder (default .gpu/peers)
# that can be carried to a machine without a network: `fetch_peers.sh [FOLDER] [PART...]`, all parts unless some are named:
#   minference   minference/: MInference's Triton kernels and CUDA index builder, from the sdist of the Python package
#   ort          ort.tar.xz: onnxruntime-node for x86-64 Linux with its WebGPU provider, without the CUDA libraries (13 MB)
#   llama        llama.tar.xz: node-llama-cpp, that is llama.cpp, for x86-64 Linux on Vulkan or on CPUs with AVX2 (9 MB)
# PyTorch and Triton must be on that machine already. Needs python3 with pip and venv, npm, xz.
set -euo pipefail

MINFERENCE=0.1.6.0
ORT=1.30.0
LLAMA=3.22.1
out=${1:-.gpu/peers}
parts=("${@:2}")
[ ${#parts[@]} -gt 0 ] || parts=(minference ort llama)
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# pip runs a source package's setup to learn its dependencies, and MInference's setup wants PyTorch and a CUDA compiler.
# Without setuptools pip stops before that, and --no-clean leaves the unpacked sources.
fetch_minference() {
  python3 -m venv --without-pip bare
  mkdir tmp
  TMPDIR=$PWD/tmp python3 -m pip --python bare/bin/python --no-cache-dir download --no-clean --no-deps --no-binary :all: \
    --no-build-isolation -d tmp "minference==$MINFERENCE" >pip.log 2>&1 || true
  local sources from to
  sources=$(find tmp -path '*/csrc/vertical_slash_index.cu' -printf '%h\n' -quit)
  if [ -z "$sources" ]; then
    tail -5 pip.log >&2
    echo "pip did not unpack minference $MINFERENCE" >&2
    exit 1
  fi
  from=${sources%/csrc}
  to=$out/minference
  rm -rf "$to"
  mkdir -p "$to/csrc" "$to/minference/ops"
  cp "$from"/csrc/{kernels.cpp,vertical_slash_index.cu} "$to/csrc/"
  cp "$from"/minference/ops/{streaming_kernel,pit_sparse_flash_attention_v2,block_sparse_flash_attention}.py "$to/minference/ops/"
  cp "$from/LICENSE" "$to/"
  echo "$MINFERENCE" >"$to/VERSION"
}

# unpack_packages NAME@VERSION...: the contents of npm packages under node_modules/, and nothing that they depend on.
unpack_packages() {
  local spec name
  for spec in "$@"; do
    name=node_modules/${spec%@*}
    mkdir -p "$name"
    tar -xzf "$(npm pack --silent "$spec")" -C "$name" --strip-components 1
  done
}

fetch_ort() {
  unpack_packages "onnxruntime-node@$ORT" "onnxruntime-common@$ORT"
  local linux=node_modules/onnxruntime-node/bin/napi-v6/linux/x64
  tar -cJf "$out/ort.tar.xz" "$linux/onnxruntime_binding.node" "$linux/libonnxruntime.so.1" \
    node_modules/onnxruntime-node/{package.json,dist} node_modules/onnxruntime-common/{package.json,dist/cjs}
}

# Of the binaries the ones for Vulkan and for CPUs, without those for other CPUs; no sources of llama.cpp.
fetch_llama() {
  npm install --silent --no-package-lock --omit=optional --ignore-scripts --no-audit --no-fund "node-llama-cpp@$LLAMA"
  unpack_packages "@node-llama-cpp/linux-x64@$LLAMA" "@node-llama-cpp/linux-x64-vulkan@$LLAMA"
  rm -rf node_modules/.bin node_modules/node-llama-cpp/llama/{addon,cmake,grammars,patches,profiles,toolchains,xpack,gitRelease.bundle}
  find node_modules/@node-llama-cpp -name 'libggml-cpu-*.so' ! -name '*-haswell.so' ! -name '*-x64.so' -delete
  find node_modules -type f \( -name '*.map' -o -name '*.d.ts' -o -name '*.md' \) -delete
  # Binaries of the same name side by side: both builds have much in common, which xz then stores once.
  find node_modules -type f -printf '%f %p\n' | sort | cut -d' ' -f2- >files
  XZ_OPT=-9e tar -cJf "$out/llama.tar.xz" --no-recursion -T files
}

for part in "${parts[@]}"; do
  mkdir "$work/$part"
  cd "$work/$part"
  "fetch_$part"
done
du -sh "$out"/*
