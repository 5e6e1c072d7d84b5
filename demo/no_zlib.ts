/** Stands for `node:zlib` in the page, where nothing compresses. */
export function deflateSync(): never {
  throw new TypeError('PNG files are made by the command line only');
}
