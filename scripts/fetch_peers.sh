#!/usr/bin/env bash
# Fetches what `bench suite` measures beside this project, into a folder (default .gpu/peers) that can be carried to a
# machine without a network:
#   minference/   MInference's Triton kernels and CUDA index builder, from the sdist of the Python package
#   ort.tar.xz    onnxruntime-node for x86-64 Linux with its WebGPU provider, without the CUDA libraries (13 MB)
# PyTorch and Triton must be on that machine already. Needs python3 with pip and venv, npm, xz.
set -euo pipefail

MINFERENCE=0.1.6.0
ORT=1.30.0
out=${1:-.gpu/peers}
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# pip runs a source package's setup to learn its dependencies, and MInference's setup wants PyTorch and a CUDA compiler.
# Without setuptools pip stops before that, and --no-clean leaves the unpacked sources.
python3 -m venv --without-pip bare
mkdir tmp
TMPDIR=$work/tmp python3 -m pip --python bare/bin/python --no-cache-dir download --no-clean --no-deps --no-binary :all: \
  --no-build-isolation -d tmp "minference==$MINFERENCE" >pip.log 2>&1 || true
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

npm pack --silent "onnxruntime-node@$ORT" "onnxruntime-common@$ORT" >/dev/null
for name in node common; do
  mkdir -p "node_modules/onnxruntime-$name"
  tar -xzf "onnxruntime-$name-$ORT.tgz" -C "node_modules/onnxruntime-$name" --strip-components 1
done
linux=node_modules/onnxruntime-node/bin/napi-v6/linux/x64
tar -cJf "$out/ort.tar.xz" "$linux/onnxruntime_binding.node" "$linux/libonnxruntime.so.1" \
  node_modules/onnxruntime-node/{package.json,dist} node_modules/onnxruntime-common/{package.json,dist/cjs}

du -sh "$out"/*
