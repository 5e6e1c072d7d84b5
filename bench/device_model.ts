import { execFileSync } from 'node:child_process';
import type { DeviceProfile } from '../src/index.js';

/** The GPU's model. Dawn on NVIDIA's driver tells only the driver's version, so the driver's own tool is asked there. */
export function deviceModel(profile: DeviceProfile): string {
  if (!/nvidia/i.test(profile.name)) return profile.name;
  try {
    const models = execFileSync('nvidia-smi', ['--query-gpu=name', '--format=csv,noheader'], { encoding: 'utf8' });
    return models.split('\n')[0]?.trim() || profile.name;
  } catch {
    return profile.name; // no such tool here
  }
}

/** A short name of a device for file names. */
export function deviceSlug(model: string): string {
  return (/h100|h200|a100|rtx[ \w]*|llvmpipe|swiftshader/i.exec(model)?.[0] ?? 'gpu').toLowerCase().replaceAll(' ', '-');
}
