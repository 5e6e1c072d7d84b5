/** How a shader uses a binding. */
export type BindingKind = 'uniform' | 'read' | 'write';

/** A compute shader, specialised: everything that a pipeline is made of. */
export interface ShaderSpec {
  /** Unique for each different `code`, `constants` and `entryPoint`; shown by debuggers and profilers. */
  readonly label: string;
  /** Complete WGSL text. */
  readonly code: string;
  readonly entryPoint?: string;
  /** Values of `override` constants. */
  readonly constants?: Readonly<Record<string, number>>;
  /** Bindings of group 0, in order. */
  readonly bindings: readonly BindingKind[];
}

/** A shader whose text is only made when it is compiled: plans name their shaders again and again. */
export function lazyShader(spec: Omit<ShaderSpec, 'code'>, code: () => string): ShaderSpec {
  let made: string | undefined;
  return {
    ...spec,
    get code() {
      made ??= code();
      return made;
    },
  };
}

interface CachedPipeline {
  readonly pipeline: GPUComputePipeline;
  readonly layout: GPUBindGroupLayout;
}

const COMPUTE_STAGE = 0x4;
const BUFFER_TYPE = { uniform: 'uniform', read: 'read-only-storage', write: 'storage' } as const;

/** Compiles each {@link ShaderSpec} once. */
export class PipelineCache {
  readonly #device: GPUDevice;
  readonly #ready = new Map<string, CachedPipeline>();
  readonly #layouts = new Map<string, GPUBindGroupLayout>();
  readonly #modules = new Map<string, GPUShaderModule>();

  constructor(device: GPUDevice) {
    this.#device = device;
  }

  /** The pipeline of `spec`, compiled now if {@link prepare} has not compiled it before. */
  get(spec: ShaderSpec): CachedPipeline {
    const key = specKey(spec);
    let entry = this.#ready.get(key);
    if (!entry) {
      const { descriptor, layout } = this.#describe(spec);
      entry = { pipeline: this.#device.createComputePipeline(descriptor), layout };
      this.#ready.set(key, entry);
    }
    return entry;
  }

  /** Compiles pipelines off the main thread, all at once. */
  async prepare(specs: Iterable<ShaderSpec>): Promise<void> {
    const jobs: Promise<void>[] = [];
    const seen = new Set<string>();
    for (const spec of specs) {
      const key = specKey(spec);
      if (this.#ready.has(key) || seen.has(key)) continue;
      seen.add(key);
      const { descriptor, layout } = this.#describe(spec);
      jobs.push(
        this.#device.createComputePipelineAsync(descriptor).then((pipeline) => {
          this.#ready.set(key, { pipeline, layout });
        }),
      );
    }
    await Promise.all(jobs);
  }

  #describe(spec: ShaderSpec): { descriptor: GPUComputePipelineDescriptor; layout: GPUBindGroupLayout } {
    const layoutKey = spec.bindings.join();
    let layout = this.#layouts.get(layoutKey);
    if (!layout) {
      layout = this.#device.createBindGroupLayout({
        label: `minference ${layoutKey}`,
        entries: spec.bindings.map((kind, binding) => ({
          binding,
          visibility: COMPUTE_STAGE,
          buffer: { type: BUFFER_TYPE[kind] },
        })),
      });
      this.#layouts.set(layoutKey, layout);
    }
    let module = this.#modules.get(spec.code);
    if (!module) {
      module = this.#device.createShaderModule({ label: spec.label, code: spec.code });
      this.#modules.set(spec.code, module);
    }
    return {
      layout,
      descriptor: {
        label: spec.label,
        layout: this.#device.createPipelineLayout({ label: spec.label, bindGroupLayouts: [layout] }),
        compute: { module, entryPoint: spec.entryPoint ?? 'main', constants: { ...spec.constants } },
      },
    };
  }
}

function specKey(spec: ShaderSpec): string {
  return `${spec.label}|${spec.entryPoint ?? 'main'}|${spec.constants ? JSON.stringify(spec.constants) : ''}`;
}
