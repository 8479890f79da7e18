// Pictures of a page as WebP: loads it, waits some seconds while it draws its curves, and takes one in light, one in dark.
// Chromium is the system's (CHROMIUM names another); playwright-core comes by NODE_PATH.
//
//   page.js URL SECONDS LIGHT.webp DARK.webp
"use strict";

const fs = require("node:fs");
const { chromium } = require("playwright-core");

async function main([url, seconds, ...files]) {
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM || "/usr/bin/chromium" });
  const page = await browser.newPage({ viewport: { width: 1160, height: 800 } });
  await page.goto(url);
  await page.waitForTimeout(1000 * Number(seconds));
  const session = await page.context().newCDPSession(page);
  for (const [at, colorScheme] of ["light", "dark"].entries()) {
    await page.emulateMedia({ colorScheme });
    const height = await page.evaluate(() => document.documentElement.scrollHeight);
    await page.setViewportSize({ width: 1160, height });
    const { data } = await session.send("Page.captureScreenshot", { format: "webp", quality: 80 });
    fs.writeFileSync(files[at], Buffer.from(data, "base64"));
  }
  await browser.close();
}

main(process.argv.slice(2)).catch((error) => {
  process.stderr.write(`${error.stack}\n`);
  process.exit(1);
});
