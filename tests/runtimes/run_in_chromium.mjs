// Runs the ONNX models of a folder with ONNX Runtime Web in headless Chromium; prints, by name, what each answers or why it does not.
//
//     node run_in_chromium.mjs CHROMIUM NODE_MODULES FOLDER '{"dims": [1, 2], "data": [3, 4]}'
//
// The last is the int64 input of each.

import { readdirSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { basename, extname, join } from "node:path";

const [executablePath, modules, folder, input] = process.argv.slice(2);
const { default: puppeteer } = await import(join(modules, "puppeteer-core", "lib", "esm", "puppeteer", "puppeteer-core.js"));

const TYPES = { ".mjs": "text/javascript", ".wasm": "application/wasm", ".onnx": "application/octet-stream" };
const server = createServer((request, response) => {
  const name = basename(decodeURIComponent(request.url));
  if (!(extname(name) in TYPES)) return response.setHeader("Content-Type", "text/html").end("<!doctype html><link rel=icon href=data:,>");
  const path = extname(name) === ".onnx" ? join(folder, name) : join(modules, "onnxruntime-web", "dist", name);
  response.setHeader("Content-Type", TYPES[extname(name)]).end(readFileSync(path));
}).listen(0, "127.0.0.1");
await new Promise((listening) => server.once("listening", listening));

const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  await page.goto(`http://127.0.0.1:${server.address().port}/`);
  const names = readdirSync(folder).filter((name) => name.endsWith(".onnx"));
  const answers = await page.evaluate(
    async (names, { dims, data }) => {
      const ort = await import("/ort.wasm.min.mjs");
      ort.env.wasm.numThreads = 1; // more need headers that a plain file server does not send
      const answer = async (name) => {
        const session = await ort.InferenceSession.create(`/${name}`, { executionProviders: ["wasm"] });
        const given = new ort.Tensor("int64", BigInt64Array.from(data, BigInt), dims);
        const outputs = await session.run({ [session.inputNames[0]]: given });
        return [...outputs[session.outputNames[0]].data];
      };
      const found = {};
      for (const name of names) found[name] = await answer(name).catch(String);
      return found;
    },
    names,
    JSON.parse(input),
  );
  console.log(JSON.stringify(answers));
} finally {
  await browser.close();
  server.close();
}
