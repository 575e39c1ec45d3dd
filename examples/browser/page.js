import { compare, parseNpy } from "./npy.js";

const ort = globalThis.ort;
ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", location.href).href;
ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send

const [verdict, form, answer] = ["verdict", "form", "answer"].map((id) => document.getElementById(id));

async function file(name) {
  const response = await fetch(`model/${name}`);
  if (!response.ok) throw new Error(`${name}: ${response.status}`);
  return response;
}
const buffer = async (name) => (await file(name)).arrayBuffer();

try {
  const session = await ort.InferenceSession.create(await buffer("model.onnx"));
  const run = async (data, shape) => (await session.run({ input: new ort.Tensor("float32", data, shape) })).output;

  const given = parseNpy(await buffer("golden/input.npy"));
  const expected = parseNpy(await buffer("golden/output.npy"));
  const answers = await run(given.data, given.shape);
  const error = compare(answers.data, answers.dims, expected);
  verdict.textContent = `golden vectors: ${given.shape[0]} rows agree, the largest error is ${error.toPrecision(3)}`;

  const { signature } = await (await file("manifest.json")).json();
  const names = signature.outputs[0].targets ?? signature.outputs[0].classes;
  const fields = signature.inputs[0].features.map((name, i) => {
    const label = document.createElement("label");
    const field = document.createElement("input");
    Object.assign(field, { type: "number", step: "any", required: true, value: given.data[i] });
    label.append(name, field);
    form.append(label);
    return field;
  });
  const show = async () => {
    if (!form.checkValidity()) {
      answer.textContent = "";
      return;
    }
    const row = Float32Array.from(fields, (field) => field.valueAsNumber);
    const { data } = await run(row, [1, row.length]);
    answer.textContent = names.map((name, i) => `${name}: ${data[i]}`).join("\n");
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  await show();
} catch (error) {
  verdict.textContent = `the model is not used: ${error.message}`;
}
