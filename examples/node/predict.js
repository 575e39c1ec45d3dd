// node predict.js PUBLISHED_FOLDER [FEATURE ...]: the golden vectors, then the answer to a row.

import { readFile } from "node:fs/promises";
import * as ort from "onnxruntime-node";
import { compare, parseNpy } from "./npy.js";

const [folder, ...features] = process.argv.slice(2);
if (!folder) {
  console.error("usage: node predict.js PUBLISHED_FOLDER [FEATURE ...]");
  process.exit(1);
}

async function npy(name) {
  const bytes = await readFile(`${folder}/golden/${name}.npy`);
  return parseNpy(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length));
}

try {
  const session = await ort.InferenceSession.create(await readFile(`${folder}/model.onnx`));
  const run = async (data, shape) => (await session.run({ input: new ort.Tensor("float32", data, shape) })).output;

  const [given, expected] = [await npy("input"), await npy("output")];
  const answers = await run(given.data, given.shape);
  const error = compare(answers.data, answers.dims, expected);
  console.log(`golden vectors: ${given.shape[0]} rows agree, the largest error is ${error.toPrecision(3)}`);

  const row = features.length ? Float32Array.from(features, Number) : given.data.slice(0, given.shape[1]);
  console.log("answer:", ...(await run(row, [1, row.length])).data);
} catch (error) {
  console.error(error.message);
  process.exit(1);
}
