import { embed, load } from "./embed.js";

const [sentences, button, status, similarities] = ["sentences", "embed", "status", "similarities"].map((id) =>
  document.getElementById(id),
);

sentences.value = [
  "A man is eating food.",
  "A man is eating a meal.",
  "A woman is playing the violin.",
  "Someone plays a string instrument.",
].join("\n");

function show(lines, vectors) {
  const table = document.createElement("table");
  for (const [i, line] of lines.entries()) {
    const row = table.insertRow();
    row.append(Object.assign(document.createElement("th"), { textContent: line, scope: "row" }));
    for (let j = 0; j <= i; j++) {
      const cosine = vectors[i].reduce((sum, value, k) => sum + value * vectors[j][k], 0);
      const cell = row.insertCell();
      cell.textContent = cosine.toFixed(2);
      cell.style.background = `color-mix(in srgb, Highlight ${Math.round(Math.max(0, cosine) * 60)}%, transparent)`;
    }
  }
  similarities.replaceChildren(table);
}

async function run(model) {
  const lines = sentences.value.split("\n").filter((line) => line.trim());
  if (!lines.length) return;
  const start = performance.now();
  const vectors = await embed(model, lines);
  status.textContent = `${(model.bytes / 1e6).toFixed(1)} MB, ${(performance.now() - start).toFixed(0)} ms`;
  show(lines, vectors);
}

try {
  const start = performance.now();
  const model = await load("model");
  const loading = performance.now() - start;
  await run(model);
  status.textContent += `, loaded in ${loading.toFixed(0)} ms`;
  button.disabled = false;
  button.addEventListener("click", () => run(model));
  // For tests and the curious: await embed(["A man is eating food."])
  window.embed = (lines) => embed(model, lines);
} catch (error) {
  status.textContent = error.message;
}
