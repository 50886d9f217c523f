// Opens the page in headless Chromium, embeds the sentences given as JSON, prints what came of it as JSON.
//
//     node open_page.mjs CHROMIUM URL '["A sentence."]' [SCREENSHOT.png]

import puppeteer from "puppeteer-core";

const [executablePath, url, sentences, screenshot] = process.argv.slice(2);
const browser = await puppeteer.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  const errors = [];
  const requests = [];
  page.on("console", (message) => ["error", "warn"].includes(message.type()) && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("status").textContent !== "loading", { timeout: 120_000 });
  const status = await page.$eval("#status", (element) => element.textContent);
  const embeddings = await page.evaluate(
    async (lines) => (window.embed ? (await window.embed(lines)).map((vector) => [...vector]) : []),
    JSON.parse(sentences),
  );
  const cells = await page.$$eval("#similarities td", (elements) => elements.length);
  if (screenshot) await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ status, embeddings, cells, errors, requests }));
} finally {
  await browser.close();
}
