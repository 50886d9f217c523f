// Opens a graph that Netron serves in headless Chromium, with the nodes' names shown and one node's panel open, and
// takes a picture. Whatever the page asks of other machines is refused.
//
//     node netron.mjs CHROMIUM PUPPETEER URL NODE PICTURE.png

const [executablePath, puppeteer, url, node, picture] = process.argv.slice(2);
const { default: launcher } = await import(puppeteer);
const browser = await launcher.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  await page.setViewport({ width: 1000, height: 980 });
  await page.setRequestInterception(true);
  page.on("request", (request) => (request.url().startsWith(url) ? request.continue() : request.abort()));
  await page.setCookie({ name: "consent", value: "0", url }); // else it asks an address on the network where it is
  await page.goto(url);
  await page.waitForSelector(".node", { timeout: 60_000 });
  await page.keyboard.down("Control");
  await page.keyboard.press("u"); // names instead of types
  await page.keyboard.up("Control");
  await page.waitForFunction(
    (name) => [...document.querySelectorAll(".node text")].some((text) => text.textContent === name),
    { timeout: 60_000 },
    node,
  );
  const labels = await page.$$(".node text");
  for (const label of labels) {
    if ((await label.evaluate((text) => text.textContent)) === node) await label.click();
  }
  await new Promise((resolve) => setTimeout(resolve, 1500)); // the panel slides in
  await page.screenshot({ path: picture });
  console.log(JSON.stringify(await page.$$eval(".node text", (texts) => texts.map((text) => text.textContent))));
} finally {
  await browser.close();
}
