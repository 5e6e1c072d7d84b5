import { availableTiers, type DeviceProfile, profileDevice } from '../device/profile.js';
import { SUBGROUP_SIZE } from '../device/subgroup_matrix.js';
import { MinferenceError } from '../errors.js';
import { HEAD_DIMS, workgroupBytes } from '../kernels/attention.js';
import { chooseKernelTiling } from '../kernels/choose.js';
import { matrixBlockM, matrixWorkgroupBytes } from '../kernels/matrix_config.js';
import type { RegisterCommand } from './app.js';
import { addDeviceOptions, type DeviceOptions, withDevice } from './device.js';
import { formatBytes, formatCount, formatTable } from './format.js';

const LIMITS = [
  ['maxBufferSize', formatBytes],
  ['maxStorageBufferBindingSize', formatBytes],
  ['maxStorageBuffersPerShaderStage', formatCount],
  ['maxComputeWorkgroupStorageSize', formatBytes],
  ['maxComputeInvocationsPerWorkgroup', formatCount],
  ['maxComputeWorkgroupsPerDimension', formatCount],
  ['minStorageBufferOffsetAlignment', formatBytes],
] as const;

const LEGEND = `D: head size; tile: query rows x keys per workgroup; staged: type of the tiles in
its memory; longest: positions of one head that a storage binding holds.
`;

/** Adds `minference info`: the adapter, what it can do, and what the kernels make of it. */
export const registerInfo: RegisterCommand = (program, action) => {
  addDeviceOptions(
    program.command('info').description('show the GPU adapter, its limits, and the tiers and tilings it gets'),
  ).action(
    action<DeviceOptions>((context, options) =>
      withDevice(context, options, async (device) => {
        const profile = profileDevice(device, options.tier);
        const tiers = options.tier === 'auto' ? availableTiers(device) : [profile.tier];
        const { vendor, architecture, device: model, description } = device.adapterInfo;
        const features = [...device.features].sort();
        const limits = Object.fromEntries(LIMITS.map(([name]) => [name, device.limits[name]]));
        const tilings = tiers.flatMap((tier) =>
          HEAD_DIMS.map((headDim) => ({ tier, headDim, ...tilingOf(profileDevice(device, tier), headDim) })),
        );
        const adapter = formatTable([
          ['adapter', profile.name],
          ['software', profile.software ? 'yes: a CPU that acts as a GPU' : 'no'],
          ['subgroups', profile.subgroups ? `yes, of ${profile.subgroupMinSize} or more` : 'no'],
          ['tiers', availableTiers(device).join(', ')],
          ['features', features.join(', ')],
        ]);
        const limitTable = formatTable(
          LIMITS.map(([name, show]) => [name, show(device.limits[name])]),
          [1],
        );
        const tilingTable = formatTable(
          [
            ['tier', 'D', 'tile', 'threads', 'staged', 'memory', 'longest f16', 'longest f32'],
            ...tilings.map((t) => [
              t.tier,
              String(t.headDim),
              ...('tiling' in t
                ? [
                    `${t.tiling.blockM} x ${t.tiling.blockN}`,
                    String(t.tiling.threads),
                    t.tiling.staged,
                    formatBytes(t.tiling.workgroupBytes),
                  ]
                : ['none fits', '', '', '']),
              ...[2, 4].map((bytes) => formatCount(longestHead(device, t.headDim, bytes))),
            ]),
          ],
          [1, 3, 5, 6, 7],
        );
        return {
          text: [adapter, limitTable, tilingTable, LEGEND].join('\n'),
          json: {
            device: { name: profile.name, vendor, architecture, device: model, description },
            software: profile.software,
            features,
            subgroupMinSize: profile.subgroupMinSize,
            limits,
            tiers: availableTiers(device),
            tilings,
          },
        };
      }),
    ),
  );
};

/** What a dense attention workgroup looks like. */
interface TilingSummary {
  readonly blockM: number;
  readonly blockN: number;
  readonly threads: number;
  readonly staged: string;
  readonly workgroupBytes: number;
}

function tilingOf(profile: DeviceProfile, headDim: number): { tiling: TilingSummary } | { error: string } {
  try {
    const tiling = chooseKernelTiling(profile, 'dense', headDim, profile.tier === 'portable' ? 'f32' : 'f16');
    if (tiling.matrix) {
      const { matrix } = tiling;
      const { m, n, k } = matrix.shape;
      return {
        tiling: {
          blockM: matrixBlockM(matrix),
          blockN: matrix.keys,
          threads: matrix.subgroups * SUBGROUP_SIZE,
          staged: `f16, ${m}x${n}x${k}`,
          workgroupBytes: matrixWorkgroupBytes('dense', headDim, matrix),
        },
      };
    }
    const { plain } = tiling;
    return {
      tiling: {
        blockM: plain.blockM,
        blockN: plain.blockN,
        threads: plain.threadsX * plain.threadsY,
        staged: 'f32',
        workgroupBytes: workgroupBytes(headDim, plain),
      },
    };
  } catch (error) {
    if (error instanceof MinferenceError) return { error: error.message };
    throw error;
  }
}

/** Positions of one head that a storage binding holds. */
function longestHead(device: GPUDevice, headDim: number, bytes: number): number {
  return Math.floor((device.limits.maxStorageBufferBindingSize - 512) / (headDim * bytes));
}
