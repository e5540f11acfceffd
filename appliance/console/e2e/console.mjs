// The console in a real browser, as an administrator uses it. Run by tests/e2e/console.rs, which has an appliance and a phone ready:
//   node e2e/console.mjs URL USER PASSWORD SERIAL PICTURES_FOLDER
// Each step fails with what it waited for; pictures of what was seen lie in the folder.
import { chromium } from 'playwright-core';

const [url, user, password, serial, pictures] = process.argv.slice(2);
/** An emulated phone on a busy machine is slow. */
const PATIENCE_MS = 240_000;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
try {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1480, height: 1000 } });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  const failures = [];
  page.on('pageerror', (error) => failures.push(error.message));
  const picture = (name) => page.screenshot({ path: `${pictures}/${name}.png` });

  await page.goto(url);
  await page.getByLabel('User').fill(user);
  await page.getByRole('textbox', { name: 'Password' }).fill('not the password');
  await page.getByRole('button', { name: 'Log in' }).click();
  await page.getByRole('alert').waitFor();
  await picture('1-refused');
  await page.getByRole('textbox', { name: 'Password' }).fill(password);
  await page.getByRole('button', { name: 'Log in' }).click();

  // The phone waits in quarantine and is released.
  await page.getByText(serial).first().waitFor();
  await picture('2-quarantine');
  await page.getByRole('button', { name: 'Release' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Reason').fill('browser test');
  await dialog.getByRole('button', { name: 'Release' }).click();
  await page.getByText('connected', { exact: true }).waitFor();
  await page.getByText('twin running').waitFor();
  await picture('3-phones');

  // Both screens, live.
  await page.getByRole('cell', { name: serial }).click();
  for (const whose of ['Phone', 'Twin']) await page.locator(`[aria-label="${whose}"][data-state="shown"] canvas`).waitFor();
  await page.waitForFunction(() => {
    const pixels = [...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL());
    return pixels.length === 2 && pixels[0] === pixels[1] && pixels[0].length > 20_000;
  });
  await picture('4-side-by-side');

  // Help desk leads: a tap on the twin opens an app on both.
  const before = await page.evaluate(() => document.querySelector('canvas').toDataURL());
  await page.getByRole('button', { name: 'Take the lead' }).click();
  await page.getByRole('dialog').getByRole('button', { name: 'Take the lead' }).click();
  await page.getByText('You lead').waitFor();
  const twin = page.locator('[aria-label="Twin"] canvas');
  const box = await twin.boundingBox();
  // The settings icon, in parts of the screen.
  await twin.click({ position: { x: (box.width * 303) / 360, y: (box.height * 503) / 720 } });
  await page.waitForFunction((old) => {
    const pixels = [...document.querySelectorAll('canvas')].map((canvas) => canvas.toDataURL());
    return pixels.length === 2 && pixels[0] === pixels[1] && pixels[0] !== old;
  }, before);
  await picture('5-drive');
  await page.getByRole('button', { name: 'Give the lead back' }).click();
  await page.getByText('The phone leads').waitFor();

  // Its log and its files.
  await page.getByRole('tab', { name: 'Log' }).click();
  await page.getByText('help desk').first().waitFor();
  await picture('6-log');
  await page.getByRole('tab', { name: 'Files' }).click();
  await page.getByRole('cell', { name: 'home' }).click();
  await page.getByRole('cell', { name: 'user' }).click();
  await picture('7-files');

  // What it was used for.
  await page.getByRole('link', { name: 'Usage' }).click();
  await page.getByRole('heading', { name: 'Calls by person and carrier' }).waitFor();
  await picture('8-usage');

  if (failures.length > 0) throw new Error(`errors in the page: ${failures.join('; ')}`);
  console.log('the console works');
} finally {
  await browser.close();
}
