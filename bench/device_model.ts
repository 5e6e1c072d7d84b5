import { execFileSync } from 'node:child_process';
import type { DeviceProfile } from '../src/index.js';

/** What NVIDIA's own tool says of the first GPU; undefined on other devices, and where that tool is missing. */
function nvidia(profile: DeviceProfile, field: string): string | undefined {
  if (!/nvidia/i.test(profile.name)) return undefined;
  try {
    const lines = execFileSync('nvidia-smi', [`--query-gpu=${field}`, '--format=csv,noheader,nounits'], { encoding: 'utf8' });
    return lines.split('\n')[0]?.trim() || undefined;
  } catch {
    return undefined;
  }
}

/** The GPU's model. Dawn on NVIDIA's driver tells only the driver's version, so the driver's own tool is asked there. */
export function deviceModel(profile: DeviceProfile): string {
  return nvidia(profile, 'name') ?? profile.name;
}

/** Bytes of GPU memory that nobody uses yet, if there is a way to know: WebGPU does not tell. */
export function freeMemory(profile: DeviceProfile): number | undefined {
  const mib = Number(nvidia(profile, 'memory.free'));
  return mib > 0 ? mib * 2 ** 20 : undefined;
}

/** A short name of a device for file names. */
export function deviceSlug(model: string): string {
  return (/h100|h200|a100|rtx[ \w]*|llvmpipe|swiftshader/i.exec(model)?.[0] ?? 'gpu').toLowerCase().replaceAll(' ', '-');
}
