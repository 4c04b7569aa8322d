// A person with a notebook in JupyterLab, in a real browser.
//
//     node jupyterlab.mjs <settings.json
//
// The settings are one line on standard input: {"url", "token", "notebook", "cells", "chromium",
// "profile", "screenshot"}. The cells are run from the first to the last. What happens goes to standard
// output, one JSON object a line: {"event"} when the last one has begun to print, and at the end
// {"result"}: the outputs of each cell as the page shows them, and the prompts.

import { text } from 'node:stream/consumers';
import { chromium } from 'playwright-core';

const SOME_LINES = 20;
const WAIT = 60_000;

const say = object => process.stdout.write(JSON.stringify(object) + '\n');
const given = JSON.parse(await text(process.stdin));

const browser = await chromium.launchPersistentContext(given.profile, {
  executablePath: given.chromium,
  headless: true,
  viewport: { width: 1200, height: 900 },
  args: [
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync'
  ]
});
const page = await browser.newPage();
page.setDefaultTimeout(WAIT);
page.on('console', message => console.error(message.text()));

const cells = page.locator('.jp-Notebook .jp-CodeCell');
const prompt = cell => cell.locator('.jp-InputPrompt').innerText();
const output = async cell =>
  (await cell.locator('.jp-OutputArea-output').allTextContents()).join('');

async function until(what, check) {
  for (const end = Date.now() + WAIT; Date.now() < end; await page.waitForTimeout(50)) {
    if (await check()) {
      return;
    }
  }
  await page.screenshot({ path: given.screenshot });
  throw new Error(`not within ${WAIT} ms: ${what}`);
}

try {
  await page.goto(`${given.url}/lab/tree/${given.notebook}?token=${given.token}`);
  // The status bar: a cell that is run before there is a kernel is not run at all.
  await page.getByText(/\| Idle$/).waitFor();
  const count = given.cells;
  await until('all cells', async () => (await cells.count()) === count);
  for (let number = 0; number < count; number += 1) {
    const cell = cells.nth(number);
    await cell.locator('.cm-content').click();
    await page.keyboard.press('Shift+Enter');
    if (number === count - 1) {
      await until('a few lines', async () => (await output(cell)).split('\n').length > SOME_LINES);
      await page.screenshot({ path: given.screenshot });
      say({ event: 'printing' });
    }
    await until(`the end of cell ${number}`, async () => /\[\d+\]/.test(await prompt(cell)));
  }
  // What the kernel said last may still be on its way into the page.
  await page.waitForTimeout(1000);
  await page.screenshot({ path: given.screenshot });
  const result = [];
  // JupyterLab has added an empty one.
  for (const cell of (await cells.all()).slice(0, count)) {
    result.push({ output: await output(cell), prompt: await prompt(cell) });
  }
  say({ result });
} finally {
  await browser.close();
}
process.exit(0);
