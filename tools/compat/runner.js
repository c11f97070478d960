// The same as runner.py, for onnxruntime-node and onnxruntime-web (WebAssembly): node runner.js PACKAGE < JOBS
const fs = require("fs");
const ort = require(require.resolve(process.argv[2], { paths: [process.cwd()] }));
ort.env.logLevel = "fatal";
if (ort.env.wasm) ort.env.wasm.numThreads = 1;

const ARRAYS = { float32: Float32Array, uint8: Uint8Array };

function decode(array) {
  const bytes = Uint8Array.from(Buffer.from(array.data, "base64"));
  return new ort.Tensor(array.dtype, new ARRAYS[array.dtype](bytes.buffer), array.shape);
}

function encode(tensor) {
  const values = Float64Array.from(tensor.data);
  return { dtype: "float64", shape: Array.from(tensor.dims), data: Buffer.from(values.buffer).toString("base64") };
}

async function main() {
  for (const job of JSON.parse(fs.readFileSync(0, "utf8"))) {
    let line;
    try {
      const session = await ort.InferenceSession.create(fs.readFileSync(job.file));
      const answers = [];
      for (const batch of job.batches) {
        const outputs = await session.run({ [session.inputNames[0]]: decode(batch) });
        answers.push(encode(outputs[session.outputNames[0]]));
      }
      line = { answers };
    } catch (error) {
      line = { refused: String(error.message || error).split(/\s+/).join(" ") };
    }
    fs.writeSync(1, JSON.stringify(line) + "\n");
  }
}

main().then(() => process.exit(0));
