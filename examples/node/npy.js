// A .npy file of float32 with two axes: "\x93NUMPY", version, length of the header, header, data.
export function parseNpy(buffer) {
  const view = new DataView(buffer);
  const start = 10 + view.getUint16(8, true);
  const header = String.fromCharCode(...new Uint8Array(buffer, 0, start));
  const shape = /\((\d+), (\d+)\)/.exec(header);
  if (!header.startsWith("\x93NUMPY") || !header.includes("'<f4'") || header.includes("'fortran_order': True") || !shape) {
    throw new Error("not a .npy file of float32 rows");
  }
  return { data: new Float32Array(buffer.slice(start)), shape: [Number(shape[1]), Number(shape[2])] };
}

// The largest error, or why the answers are wrong. Written so that NaN is a mismatch too.
export function compare(answers, shape, expected) {
  if (String(shape) !== String(expected.shape)) {
    throw new Error(`golden vectors: shape ${shape} instead of ${expected.shape}`);
  }
  let error = 0;
  let largest = 0;
  for (let i = 0; i < expected.data.length; i++) {
    error = Math.max(error, Math.abs(answers[i] - expected.data[i])); // NaN stays NaN
    largest = Math.max(largest, Math.abs(expected.data[i]));
  }
  if (!(error <= 1e-5 * largest)) {
    throw new Error(`golden vectors: the largest error is ${error}`);
  }
  return error;
}
