#!/bin/sh
# Builds the layer of pipeline_statistics.c (needs gcc and Debian's libvulkan-dev) into a folder, by default .gpu/stats:
#   bench/tune/pipeline_statistics.sh [FOLDER]
# Then, with any program that uses Dawn in Node, or another Vulkan program:
#   . .gpu/stats/env.sh; PIPELINE_STATISTICS=statistics.tsv node ...
set -eu
here=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$here/../../.gpu/stats}
mkdir -p "$folder"
gcc -std=c11 -shared -fPIC -O2 -Wall -Wextra -fvisibility=hidden -pthread \
  -o "$folder/libpipeline_statistics.so" "$here/pipeline_statistics.c"

cat > "$folder/pipeline_statistics.json" <<'END'
{
  "file_format_version": "1.1.2",
  "layer": {
    "name": "VK_LAYER_MINFERENCE_pipeline_statistics",
    "type": "GLOBAL",
    "library_path": "./libpipeline_statistics.so",
    "api_version": "1.3.239",
    "implementation_version": "1",
    "description": "Registers, local memory and other compiler statistics of compute pipelines"
  }
}
END

# Makes Dawn pass labels on to Vulkan, whatever toggles the program asks for. Dawn names a compute pipeline before it has
# a handle, so in vain; setting the label once more names it.
cat > "$folder/labels.cjs" <<'END'
const FEATURES = 'enable-dawn-features=';
const dlopen = process.dlopen;
process.dlopen = (module, path, ...rest) => {
  dlopen.call(process, module, path, ...rest);
  if (!path.endsWith('dawn.node')) return;
  const { create, globals } = module.exports;
  module.exports.create = (flags = []) => {
    const others = flags.filter((flag) => !flag.startsWith(FEATURES));
    const features = flags.filter((flag) => flag.startsWith(FEATURES)).map((flag) => flag.slice(FEATURES.length));
    return create([...others, FEATURES + [...features, 'use_user_defined_labels_in_backend'].join(',')]);
  };
  const { createComputePipeline, createComputePipelineAsync } = globals.GPUDevice.prototype;
  const name = (pipeline, { label, compute }) => {
    pipeline.label = label || compute.module.label;
    return pipeline;
  };
  globals.GPUDevice.prototype.createComputePipeline = function (descriptor) {
    return name(createComputePipeline.call(this, descriptor), descriptor);
  };
  globals.GPUDevice.prototype.createComputePipelineAsync = async function (descriptor) {
    return name(await createComputePipelineAsync.call(this, descriptor), descriptor);
  };
};
END

cat > "$folder/env.sh" <<'END'
# Source this (bash) to load the layer: `. .gpu/stats/env.sh`. Set PIPELINE_STATISTICS and PIPELINE_IR yourself.
stats_folder=$(cd "$(dirname "${BASH_SOURCE:-$0}")" && pwd)
export VK_LAYER_PATH=$stats_folder VK_INSTANCE_LAYERS=VK_LAYER_MINFERENCE_pipeline_statistics
export NODE_OPTIONS="--require=$stats_folder/labels.cjs"
END
echo "built $folder/libpipeline_statistics.so"
