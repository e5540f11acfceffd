// The console in a real browser, as its three kinds of user use it. Run by tests/e2e/console.rs, which has an appliance and a phone ready:
//   node e2e/console.mjs URL USER PASSWORD SERIAL TARGETS PICTURES_FOLDER
// TARGETS is a JSON object from the names of the handset's touch targets to where they are, in pixels.
// Each step fails with what it waited for; pictures of what was seen lie in the folder.
import { chromium } from 'playwright-core';

const [url, user, password, serial, targetsText, pictures] = process.argv.slice(2);
const targets = JSON.parse(targetsText);
/** An emulated phone on a busy machine is slow. */
const PATIENCE_MS = 240_000;
/** How long a finger rests on the glass. */
const TAP_MS = 80;

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-component-update', '--disable-sync'],
});
const failures = [];
try {
  const admin = await open();
  const passwords = await administrator(admin);
  await helpDesk(await open(), passwords.hanna);
  await manager(await open(), passwords.mia);
  if (failures.length > 0) throw new Error(`what no user should meet: ${failures.join('; ')}`);
  console.log('the console works');
} catch (error) {
  const open = browser.contexts().flatMap((context) => context.pages());
  await Promise.all(open.map((page, index) => picture(page, `failed-${index}`)));
  throw error;
} finally {
  await browser.close();
}

/** A browser of its own, whose errors and refusals are kept: nobody is offered what is forbidden. */
async function open() {
  const context = await browser.newContext({ ignoreHTTPSErrors: true, viewport: { width: 1480, height: 1000 } });
  context.setDefaultTimeout(PATIENCE_MS);
  const page = await context.newPage();
  page.on('pageerror', (error) => failures.push(error.message));
  page.on('console', (message) => message.text().includes('Content Security Policy') && failures.push(message.text()));
  page.on('response', (reply) => reply.status() === 403 && failures.push(`403 for ${reply.url()}`));
  await page.goto(url);
  return page;
}

function picture(page, name) {
  return page.screenshot({ path: `${pictures}/${name}.png` });
}

async function logIn(page, name, word) {
  await page.getByLabel('User').fill(name);
  await page.getByRole('textbox', { name: 'Password' }).fill(word);
  await page.getByRole('button', { name: 'Log in' }).click();
}

/** The names of the sections that are offered. */
async function sections(page) {
  const links = page.getByRole('navigation', { name: 'Sections' }).getByRole('link');
  await links.first().waitFor();
  return (await links.allTextContents()).join(' ');
}

function expect(what, found, wanted) {
  if (found !== wanted) throw new Error(`${what}: ${JSON.stringify(found)} instead of ${JSON.stringify(wanted)}`);
}

function pixels(page, whose) {
  return page.evaluate((whose) => document.querySelector(`[aria-label="${whose}"] canvas`).toDataURL(), whose);
}

/** Touches a target on one of the two screens, and waits until that screen has drawn something. */
async function tap(page, whose, name) {
  const before = await pixels(page, whose);
  const [x, y] = targets[name];
  const canvas = page.locator(`[aria-label="${whose}"] canvas`);
  const { width } = await canvas.boundingBox();
  const scale = width / (await canvas.evaluate((canvas) => canvas.width));
  await canvas.click({ position: { x: x * scale, y: y * scale }, delay: TAP_MS });
  await page.waitForFunction(([whose, old]) => document.querySelector(`[aria-label="${whose}"] canvas`).toDataURL() !== old, [whose, before]);
}

/** Waits until phone and twin show the same, which is a picture and not a blank. */
async function sameScreens(page) {
  await page.waitForFunction(() => {
    const [phone, twin] = ['Phone', 'Twin'].map((whose) => document.querySelector(`[aria-label="${whose}"] canvas`)?.toDataURL());
    return phone && phone === twin && phone.length > 10_000;
  });
}

/** An administrator's day. Gives the passwords of the users that were made. */
async function administrator(page) {
  await logIn(page, user, 'not the password');
  await page.getByRole('alert').waitFor();
  await picture(page, '01-refused');
  await logIn(page, user, password);
  expect('sections of an administrator', await sections(page), 'Phones Find Usage Enrolment Users');

  // The phone waits in quarantine, tells why, and is released.
  await page.getByRole('table', { name: 'Phones in quarantine' }).getByText(serial).waitFor();
  await picture(page, '02-quarantine');
  await page.getByRole('button', { name: 'Release' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Reason').fill('browser test');
  await dialog.getByRole('button', { name: 'Release' }).click();
  await page.getByText('connected', { exact: true }).waitFor();
  await page.getByText('twin running').waitFor();
  await page.getByLabel('Search phones').fill('no such phone');
  await page.getByText('No phone is like that').waitFor();
  await page.getByLabel('Search phones').fill(serial.toLowerCase());
  await picture(page, '03-phones');

  // Who uses it.
  await page.getByRole('link', { name: serial }).click();
  await page.getByRole('button', { name: 'Say who uses it' }).click();
  for (const [field, value] of [['Person', 'Ada Lovelace'], ['Department', 'Sales'], ['Carrier', 'Aurora Mobile']]) {
    await dialog.getByLabel(field).fill(value);
  }
  await dialog.getByRole('button', { name: 'Save' }).click();
  await page.getByText('Ada Lovelace, Sales').waitFor();

  // Both screens, live. Its user makes a call on the phone; the twin follows, and is said to have.
  for (const whose of ['Phone', 'Twin']) await page.locator(`[aria-label="${whose}"][data-state="shown"] canvas`).waitFor();
  await sameScreens(page);
  await picture(page, '04-side-by-side');
  for (const name of ['home.phone', 'phone.key.0', 'phone.key.1', 'phone.key.7', 'phone.call']) await tap(page, 'Phone', name);
  await sameScreens(page);
  await picture(page, '05-call');
  await tap(page, 'Phone', 'call.hangup');
  await tap(page, 'Phone', 'nav.home');
  await sameScreens(page);
  await page.getByRole('row', { name: 'Twin up to date' }).waitFor();

  // Help desk leads: what is tapped and typed on the twin happens on both.
  await page.getByRole('button', { name: 'Take the lead' }).click();
  await dialog.getByRole('button', { name: 'Take the lead' }).click();
  await page.getByText('You lead').waitFor();
  for (const name of ['home.notes', 'notes.new']) await tap(page, 'Twin', name);
  await sameScreens(page);
  const field = page.getByLabel('Type or paste on the phone');
  await field.fill('Ask Ben about Lisbon');
  await page.getByRole('button', { name: 'Type' }).click();
  await page.waitForFunction((field) => field.value === '', await field.elementHandle());
  await sameScreens(page);
  await picture(page, '06-drive');
  await tap(page, 'Twin', 'nav.back');
  await sameScreens(page);
  await page.getByRole('button', { name: 'Give the lead back' }).click();
  await page.getByText('The phone leads').waitFor();

  // Its log, and its files, among them the note.
  await page.getByRole('tab', { name: 'Log' }).click();
  await page.getByText('help desk', { exact: true }).first().waitFor();
  await picture(page, '07-log');
  await page.getByRole('tab', { name: 'Files' }).click();
  for (const folder of ['home', 'user', 'Notes']) await page.getByRole('cell', { name: folder, exact: true }).getByRole('button').click();
  const download = page.waitForEvent('download');
  await page.getByRole('link', { name: /^Download/ }).first().click();
  await (await download).delete();
  await picture(page, '08-files');
  await page.getByRole('table').getByRole('button').filter({ hasNotText: /Name|Size|Changed/ }).first().click();
  await dialog.getByText('Ask Ben about Lisbon').waitFor();
  await picture(page, '09-preview');
  await page.keyboard.press('Escape');

  // The note is found among the files of all phones, and a copy of the twin boots with the files as they were when it was.
  await page.getByRole('link', { name: 'Find' }).click();
  await page.getByLabel('Name').fill('/home/*');
  await page.getByLabel('With this text in it').fill('about Lisbon');
  await page.getByRole('button', { name: 'Find', exact: true }).click();
  const found = page.getByRole('table', { name: 'Files found' });
  await found.getByText('Ask Ben about Lisbon').waitFor();
  await picture(page, '17-found');
  await found.getByRole('link').first().click();
  await page.getByRole('button', { name: 'Boot a copy as of then' }).click();
  await page.locator('[aria-label="Copy 1"][data-state="shown"] canvas').waitFor();
  await picture(page, '18-copy');
  await page.getByRole('button', { name: 'End it' }).click();
  await page.locator('[aria-label="Copy 1"]').waitFor({ state: 'detached' });

  // What it was used for: the call is in the report, and leads back to the log.
  await page.getByRole('link', { name: 'Usage' }).click();
  await page.getByRole('button', { name: '1: records behind Calls of Ada Lovelace, Aurora Mobile' }).click();
  await dialog.getByRole('cell', { name: '017', exact: true }).waitFor();
  await picture(page, '10-records');
  await dialog.getByRole('link', { name: /^event \d/ }).click();
  await page.locator('tr[aria-current="true"]').getByText('records.db').waitFor();
  await page.goBack();
  await page.getByRole('tab', { name: 'Overall activity' }).click();
  await page.getByText(/against/).first().waitFor();
  await page.getByRole('table', { name: 'Overall activity' }).waitFor();
  await picture(page, '11-overall');

  // Codes and users.
  await page.getByRole('link', { name: 'Enrolment' }).click();
  await page.getByLabel('For whom').fill('Ben');
  await page.getByRole('button', { name: 'Make a code' }).click();
  await page.getByText(/pollux-agent --appliance/).waitFor();
  await picture(page, '12-enrolment');
  await page.getByRole('link', { name: 'Users' }).click();
  const passwords = {};
  for (const [name, role] of [['hanna', 'Help desk'], ['mia', 'Usage intelligence'], ['otto', 'Administrator']]) {
    await page.getByRole('button', { name: 'Add a user' }).click();
    await dialog.getByLabel('Name').fill(name);
    await dialog.getByLabel(role).check();
    await dialog.getByRole('button', { name: 'Add', exact: true }).click();
    passwords[name] = await dialog.locator('pre').textContent();
    await dialog.getByRole('button', { name: 'Done' }).click();
    await page.getByRole('cell', { name, exact: true }).waitFor();
  }
  await page.getByRole('button', { name: 'Actions for otto' }).click();
  await page.getByRole('menuitem', { name: 'Remove' }).click();
  await dialog.getByRole('button', { name: 'Remove' }).click();
  await page.getByRole('cell', { name: 'otto', exact: true }).waitFor({ state: 'detached' });
  await picture(page, '13-users');
  return passwords;
}

/** Help desk changes its password, sees phones and their twins, and nothing of the rest. */
async function helpDesk(page, word) {
  await logIn(page, 'hanna', word);
  expect('sections of help desk', await sections(page), 'Phones Find');
  await page.getByRole('button', { name: 'Account of hanna' }).click();
  await page.getByRole('menuitem', { name: 'Change my password' }).click();
  const dialog = page.getByRole('dialog');
  await dialog.getByLabel('Present password').fill(word);
  await dialog.getByRole('textbox', { name: 'New password', exact: true }).fill('correct horse battery');
  await dialog.getByLabel('New password, again').fill('correct horse battery');
  await dialog.getByRole('button', { name: 'Change' }).click();
  await page.getByText('Your password is changed.').waitFor();
  await page.goto(`${url}/usage`);
  await page.getByRole('link', { name: serial }).click();
  await page.locator('[aria-label="Twin"][data-state="shown"] canvas').waitFor();
  for (const tab of ['Log', 'Files', 'Conflicts', 'Screen']) await page.getByRole('tab', { name: tab }).click();
  expect('buttons for administrators only', await page.getByRole('button', { name: /Actions|Say who uses it/ }).count(), 0);
  await picture(page, '14-help-desk');
}

/** A manager sees usage and its records, and nothing of the rest. */
async function manager(page, word) {
  await logIn(page, 'mia', word);
  expect('sections of a manager', await sections(page), 'Usage');
  await page.getByRole('button', { name: '1: records behind Calls of Ada Lovelace, Aurora Mobile' }).click();
  await page.getByRole('dialog').getByText(/^event \d/).waitFor();
  expect('links into logs for a manager', await page.getByRole('dialog').getByRole('link').count(), 0);
  await picture(page, '15-manager');
}
