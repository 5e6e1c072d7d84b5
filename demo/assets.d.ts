/** Files whose address or text the bundler gives. */
declare module '*?url' {
  const url: string;
  export default url;
}
declare module '*.txt?raw' {
  const text: string;
  export default text;
}
