// A real browser on one page, for the suite: an order a line of JSON on standard input, an answer a line on standard
// output. Chromium is the system's (CHROMIUM names another); playwright-core comes by NODE_PATH.
//
//   {"open": URL}                          loads it
//   {"wait": SELECTOR, "text": TEXT}       until something that is shown has this text in it
//   {"read": SELECTOR}                     the texts of all that are shown
//   {"attribute": SELECTOR, "name": NAME}  the same of an attribute
//   {"width": N, "scheme": "light" | "dark", "picture": FILE | null}    whether it fits this width; a picture of it
//   {"complaints": true}                   what its console said, what failed, what was asked of others
"use strict";

const readline = require("node:readline");
const { chromium } = require("playwright-core");

const PATIENCE = 60_000;

async function main() {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium" });
  const page = await browser.newPage();
  page.setDefaultTimeout(PATIENCE);
  const complaints = [];
  let origin;
  page.on("console", (message) => complaints.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.message}`));
  page.on("requestfailed", (request) => complaints.push(`failed: ${request.url()}`));
  page.on("request", (request) => {
    if (!request.url().startsWith("data:") && new URL(request.url()).origin !== origin) complaints.push(`asked: ${request.url()}`);
  });
  const shown = (selector) => page.locator(selector).filter({ visible: true });
  const orders = {
    open: async ({ open }) => {
      origin = new URL(open).origin;
      return (await page.goto(open)).status();
    },
    wait: async ({ wait, text }) => shown(wait).filter({ hasText: text }).first().waitFor(),
    read: async ({ read }) => shown(read).allInnerTexts(),
    attribute: async ({ attribute, name }) =>
      shown(attribute).evaluateAll((nodes, of) => nodes.map((node) => node.getAttribute(of)), name),
    width: async ({ width, scheme, picture }) => {
      await page.emulateMedia({ colorScheme: scheme });
      await page.setViewportSize({ width, height: 800 });
      if (picture) await page.screenshot({ path: picture, fullPage: true });
      return page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth);
    },
    complaints: async () => complaints,
  };
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    const name = Object.keys(orders).find((known) => known in order);
    const answer = await orders[name](order).then((value = null) => ({ value }), (error) => ({ error: error.message }));
    process.stdout.write(`${JSON.stringify(answer)}\n`);
  }
  await browser.close();
}

main().catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
