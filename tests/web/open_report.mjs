// Opens a report in headless Chromium, in both themes, on a phone and for print; sorts, filters; prints what it saw as JSON.
//
//     node open_report.mjs CHROMIUM PUPPETEER FILE FOLDER

const [executablePath, puppeteer, file, folder] = process.argv.slice(2);
const { default: launcher } = await import(puppeteer);
const browser = await launcher.launch({ executablePath, args: ["--no-sandbox"] });
try {
  const page = await browser.newPage();
  const errors = [];
  const requests = [];
  page.on("console", (message) => errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(`file://${file}`);
  const shown = (column) =>
    page.$$eval("#layers tbody tr", (rows, at) => rows.filter((row) => !row.hidden).map((row) => row.cells[at].textContent), column);
  const sorted = {};
  for (const column of [0, 1, 7]) {
    const button = `#layers th:nth-child(${column + 1}) button`;
    await page.click(button);
    const ascending = await shown(column);
    await page.click(button);
    sorted[column] = [ascending, await shown(column)];
  }
  await page.type("#filter", "QUERY");
  const filtered = await shown(0);
  const colours = {};
  const overflow = {};
  const frontier = {};
  for (const [theme, width] of [["light", 1100], ["dark", 1100], ["light", 390]]) {
    await page.setViewport({ width, height: 900 });
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value: theme }]);
    await page.screenshot({ path: `${folder}/${theme}-${width}.png`, fullPage: true });
    colours[theme] = await page.evaluate(() => {
      const style = getComputedStyle(document.body);
      return [style.backgroundColor, style.color, getComputedStyle(document.querySelector("#errors text")).fill];
    });
    overflow[width] = await page.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    frontier[width] = await page.evaluate(() => {
      const boxes = [...document.querySelectorAll("#frontier td, #frontier-bytes svg, #frontier-latency svg")]
        .map((each) => each.getBoundingClientRect());
      const [left, right] = ["bytes", "latency"].map((each) => document.getElementById(`frontier-${each}`).getBoundingClientRect());
      return { right: Math.max(...boxes.map((box) => box.right)), beside: left.top === right.top, shown: boxes.every((box) => box.width > 0) };
    });
  }
  await page.pdf({ path: `${folder}/print.pdf` });
  console.log(JSON.stringify({ errors, requests, sorted, filtered, colours, overflow, frontier }));
} finally {
  await browser.close();
}
