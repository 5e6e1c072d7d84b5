/** WGSL files are imported as text; the bundler inlines them. */
declare module '*.wgsl?raw' {
  const source: string;
  export default source;
}
