// Sentence embeddings with ONNX Runtime: the same steps as examples/sentences.py.

import { Tokenizer } from "@huggingface/tokenizers";
import * as ort from "onnxruntime-web";

// One thread: more need headers (COOP, COEP) that a plain file server does not send.
ort.env.wasm.numThreads = 1;

export async function load(folder) {
  const [model, tokenizer, options] = await Promise.all([
    fetchPart(folder, "model.onnx", "arrayBuffer"),
    fetchPart(folder, "tokenizer.json", "json"),
    fetchPart(folder, "tokenizer_config.json", "json"),
  ]);
  const session = await ort.InferenceSession.create(model, { executionProviders: ["wasm"] });
  return { session, tokenizer: new Tokenizer(tokenizer, options), bytes: model.byteLength };
}

async function fetchPart(folder, name, kind) {
  const response = await fetch(`${folder}/${name}`);
  if (!response.ok) throw new Error(`${folder}/${name} is not there (${response.status}); make it as README.md says`);
  return response[kind]();
}

// sentences: array of strings. Returns an array of Float32Array, each of length one.
export async function embed({ session, tokenizer }, sentences) {
  const encoded = sentences.map((sentence) => tokenizer.encode(sentence));
  const length = Math.max(...encoded.map(({ ids }) => ids.length));
  const padded = (name, filler) =>
    new ort.Tensor(
      "int64",
      BigInt64Array.from(
        encoded.flatMap((each) => Array.from({ length }, (_, i) => BigInt(i < each.ids.length ? each[name]?.[i] ?? filler : 0))),
      ),
      [sentences.length, length],
    );
  const given = { input_ids: padded("ids", 0), attention_mask: padded("attention_mask", 1), token_type_ids: padded("token_type_ids", 0) };
  const inputs = Object.fromEntries(session.inputNames.map((name) => [name, given[name]]));
  const { last_hidden_state: features } = await session.run(inputs);
  const width = features.dims[2];
  return encoded.map(({ ids }, i) => {
    const mean = new Float32Array(width);
    for (let token = 0; token < ids.length; token++)
      for (let j = 0; j < width; j++) mean[j] += features.data[(i * length + token) * width + j];
    const norm = Math.hypot(...mean);
    return mean.map((value) => value / norm);
  });
}
