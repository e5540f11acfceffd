import { fireEvent, screen, waitFor, within } from '@testing-library/react';
import { Route, Routes } from 'react-router';
import { expect, test, vi } from 'vitest';

import { appliance, inUse, me, refusal, show, waiting } from '../testing';
import Enrolment, { phonesReach } from './Enrolment';
import Find from './Find';
import { Login } from './Login';
import PhonePage from './Phone';
import { permissions } from '../parts/units';
import { how } from './Changes';
import { matches, Phones } from './Phones';
import Users from './Users';

vi.mock('@novnc/novnc', () => ({
  default: class extends EventTarget {
    disconnect() {}
    focus() {}
  },
}));

const type = (label: string | RegExp, text: string) => fireEvent.change(screen.getByLabelText(label, { selector: 'input' }), { target: { value: text } });
const press = (name: string | RegExp) => fireEvent.click(screen.getByRole('button', { name }));
const inDialog = async (name: string) => fireEvent.click(await within(await screen.findByRole('dialog')).findByRole('button', { name }));

test('a wrong password is told with its advice', async () => {
  appliance({ 'POST /api/login': [401, refusal('wrong password', 'check both')] });
  show(<Login expired={false} />);
  type(/User/, 'ada');
  type(/Password/, 'x');
  press('Log in');
  const alert = await screen.findByRole('alert');
  expect(alert.textContent).toContain('Wrong password.');
  expect(alert.textContent).toContain('Check both.');
});

test('an administrator releases a waiting phone after confirming, with a reason', async () => {
  const asked = appliance({ 'GET /api/phones': [200, { phones: [waiting] }], 'POST /api/phones/p1/release': [200, { ...waiting, standing: 'released' }] });
  show(<Phones me={me('admin')} />);
  fireEvent.click(await screen.findByRole('button', { name: 'Release' }));
  expect(asked.some(({ request }) => request.startsWith('POST'))).toBe(false);
  fireEvent.change(await screen.findByLabelText('Reason'), { target: { value: 'known' } });
  await inDialog('Release');
  await waitFor(() => expect(asked).toContainEqual({ request: 'POST /api/phones/p1/release', body: { reason: 'known' } }));
});

test('help desk sees the quarantine but cannot release, nor enrol', async () => {
  appliance({ 'GET /api/phones': [200, { phones: [waiting] }] });
  show(<Phones me={me('helpdesk')} />);
  expect(await screen.findByText('HS-0001')).toBeTruthy();
  expect(screen.queryByRole('button', { name: 'Release' })).toBeNull();
  expect(screen.queryByRole('link', { name: /[Ee]nrol/ })).toBeNull();
  expect(screen.getByText('No phone is enrolled yet')).toBeTruthy();
});

test('the first phone: an administrator is led to its enrolment', async () => {
  appliance({ 'GET /api/phones': [200, { phones: [] }] });
  show(<Phones me={me('admin')} />);
  const link = await screen.findByRole('link', { name: 'Enrol the first phone' });
  expect(link.getAttribute('href')).toBe('/enrolment');
});

test('phones are found by words and narrowed by state, and the address keeps both', async () => {
  expect(matches(inUse, 'ada tele')).toBe(true);
  expect(matches(inUse, 'ada vodafone')).toBe(false);
  expect(matches(inUse, '')).toBe(true);
  const away = { ...inUse, id: 'p3', serial: 'HS-0003', connected: false, assignment: { ...inUse.assignment, person: 'Ben' } };
  appliance({ 'GET /api/phones': [200, { phones: [inUse, away] }] });
  show(<Phones me={me('helpdesk')} />);
  await screen.findByText('HS-0003');
  fireEvent.change(screen.getByLabelText('Search phones'), { target: { value: 'ben' } });
  expect(screen.queryByText('HS-0002')).toBeNull();
  fireEvent.click(screen.getByLabelText('Connected (0)'));
  expect(screen.getByText('No phone is like that')).toBeTruthy();
  expect(screen.getByTestId('address').textContent).toBe('/?q=ben&show=connected');
  press('Show all phones');
  expect(screen.getByText('HS-0002')).toBeTruthy();
});

function phonePage(role: Parameters<typeof me>[0], phone = inUse, tab = '') {
  show(
    <Routes>
      <Route path="/phones/:id/:tab?" element={<PhonePage me={me(role)} />} />
    </Routes>,
    `/phones/${phone.id}${tab}`,
  );
}

test('an administrator says who uses a phone', async () => {
  const asked = appliance({
    'GET /api/phones/p2': [200, inUse],
    'GET /api/phones': [200, { phones: [inUse] }],
    'PUT /api/phones/p2/assignment': [200, {}],
  });
  phonePage('admin');
  fireEvent.click(await screen.findByRole('button', { name: 'Say who uses it' }));
  await screen.findByRole('dialog');
  type('Person', 'Ben');
  press('Save');
  await waitFor(() =>
    expect(asked).toContainEqual({ request: 'PUT /api/phones/p2/assignment', body: { person: 'Ben', department: 'Sales', carrier: 'Telekom' } }),
  );
});

test('help desk reads who uses a phone and takes the lead, and is offered nothing that is forbidden', async () => {
  const asked = appliance({ 'GET /api/phones/p2': [200, inUse], 'PUT /api/phones/p2/drive': [200, {}] });
  phonePage('helpdesk');
  expect(await screen.findByText('Ada, Sales')).toBeTruthy();
  for (const name of ['Say who uses it', 'Actions']) expect(screen.queryByRole('button', { name })).toBeNull();
  press('Take the lead');
  expect(asked.some(({ request }) => request.startsWith('PUT'))).toBe(false);
  await inDialog('Take the lead');
  await waitFor(() => expect(asked.map(({ request }) => request)).toContain('PUT /api/phones/p2/drive'));
});

test('who else leads is told instead of offering the lead', async () => {
  appliance({ 'GET /api/phones/p2': [200, { ...inUse, lease: { operator: 'otto', since: '', expires_at: '' } }] });
  phonePage('helpdesk');
  expect(await screen.findByText('otto leads')).toBeTruthy();
  expect(screen.queryByRole('button', { name: 'Take the lead' })).toBeNull();
});

test('a twin that runs slowly says what on, and why', async () => {
  const cpu = 'x86-64, emulated (slow): this host has no KVM';
  appliance({ 'GET /api/phones/p2': [200, { ...inUse, twin: { ...inUse.twin, cpu } }] });
  phonePage('helpdesk');
  expect(await screen.findByText(`Runs on ${cpu}`)).toBeTruthy();
});

test('a twin is stopped only after asking', async () => {
  const asked = appliance({ 'GET /api/phones/p2': [200, inUse], 'POST /api/phones/p2/twin/stop': [200, inUse.twin] });
  phonePage('helpdesk');
  fireEvent.click(await screen.findByRole('button', { name: 'Stop' }));
  expect(asked.some(({ request }) => request.startsWith('POST'))).toBe(false);
  await inDialog('Stop the twin');
  await waitFor(() => expect(asked.map(({ request }) => request)).toContain('POST /api/phones/p2/twin/stop'));
});

test('a quarantined phone says why, and only an administrator can release it', async () => {
  appliance({ 'GET /api/phones/p1': [200, waiting] });
  phonePage('helpdesk', waiting);
  expect(await screen.findByText(/registered without a code/)).toBeTruthy();
  expect(screen.getByText(/An administrator can release it/)).toBeTruthy();
  expect(screen.queryByRole('button', { name: 'Release' })).toBeNull();
});

const event = (position: number, kind: string, summary: string) => ({ position, at: '2026-11-01T10:00:00Z', origin: 'phone', kind, summary });

test('the log is newest first, narrowed by kind and words, and one event can be asked for', async () => {
  const page = { events: [event(1, 'mmi', 'finger down'), event(2, 'file', 'file /home/a'), event(3, 'file', 'file /home/b')], last: 3 };
  appliance({ 'GET /api/phones/p2': [200, inUse], 'GET /api/phones/p2/log?limit=300&after=0': [200, page] });
  phonePage('helpdesk', inUse, '/log?at=2');
  const table = await screen.findByRole('table', { name: 'Log' });
  const positions = () => within(table).getAllByRole('row').slice(1).map((row) => row.firstChild!.textContent);
  expect(positions()).toEqual(['3', '2', '1']);
  expect(within(table).getByText('file /home/a').closest('tr')!.getAttribute('aria-current')).toBe('true');
  fireEvent.click(within(screen.getByRole('radiogroup', { name: 'Which events' })).getByLabelText('Files'));
  expect(positions()).toEqual(['3', '2']);
  type('Search these events', '/B');
  expect(positions()).toEqual(['3']);
  expect(screen.getByText(/1 of them shown/)).toBeTruthy();
});

const state = (size: number, mode = 0o644) => ({ kind: 'file', mode, uid: 1000, gid: 1000, size, modified_at: '2026-11-01T00:00:00Z' });
const changed = (path: string, before: ReturnType<typeof state> | null, after: ReturnType<typeof state> | null, moved_from: string | null = null) =>
  ({ path, change: moved_from ? 'moved' : before && after ? 'changed' : after ? 'added' : 'removed', moved_from, before, after }) as const;

test('two moments of a phone are compared, and the address keeps them', async () => {
  appliance({
    'GET /api/phones/p2': [200, inUse],
    'GET /api/phones/p2/files?path=/': [200, { path: '/', position: 40, entries: [] }],
    'GET /api/phones/p2/diff?from=39&to=40': [200, { from: 39, to: 40, changes: [], more: false }],
    'GET /api/phones/p2/log?limit=1&after=38': [200, { events: [event(39, 'file', 'file /home/x')], last: 40 }],
  });
  phonePage('helpdesk', inUse, '/files');
  expect(await screen.findByText('This folder is empty')).toBeTruthy();
  fireEvent.click(screen.getByLabelText('Show what changed'));
  expect(await screen.findByText('No file changed between these')).toBeTruthy();
  expect(screen.getByTestId('address').textContent).toBe('/phones/p2/files?at=40&since=39');
});

test('a copy of the twin boots with the files of a moment of the past', async () => {
  const asked = appliance({
    'GET /api/phones/p2': [200, inUse],
    'GET /api/phones/p2/files?path=/&position=7': [200, { path: '/', position: 7, entries: [] }],
    'GET /api/phones/p2/log?limit=1&after=6': [200, { events: [event(7, 'file', 'file /home/x')], last: 40 }],
    'POST /api/phones/p2/twin/forks': [200, { number: 1, at: '2026-11-01T00:00:00Z', position: 7 }],
  });
  phonePage('helpdesk', inUse, '/files?at=7');
  fireEvent.click(await screen.findByText('Boot a copy as of then'));
  await waitFor(() => expect(screen.getByTestId('address').textContent).toBe('/phones/p2'));
  expect(asked.find(({ request }) => request === 'POST /api/phones/p2/twin/forks')?.body).toEqual({ position: 7 });
});

test('files are found on one phone after the other', async () => {
  const step = (matches: unknown[], next: string | null) => [200, { position: 9, matches, looked_at: 3, bytes_read: 0, unread: 1, next }] as [number, unknown];
  const match = (path: string) => ({ path, kind: 'file', size: 5, modified_at: '2026-11-01T00:00:00Z', offset: 0, excerpt: 'dear all' });
  appliance({
    'GET /api/phones': [200, { phones: [inUse, { ...inUse, id: 'p3', serial: 'HS-0003' }] }],
    'GET /api/phones/p2/find?pattern=*.txt&contents=dear': step([match('/home/a%20b.txt')], '/home/m'),
    'GET /api/phones/p2/find?pattern=*.txt&contents=dear&after=/home/m': step([match('/home/z.txt')], null),
    'GET /api/phones/p3/find?pattern=*.txt&contents=dear': step([], null),
  });
  show(<Find />, '/find?name=*.txt&text=dear');
  expect(await screen.findByText('2 files found in 2 phones · 3 files could not be read, or are too large')).toBeTruthy();
  expect(screen.getByText('/home/a b.txt').getAttribute('href')).toBe('/phones/p2/files?path=%2Fhome&at=9');
});

test('what changed is told by path, and how', async () => {
  const changes = [changed('/home/a%20b', state(10), state(2048)), changed('/home/new', null, state(5)), changed('/home/there', state(1), state(1), '/home/here')];
  appliance({
    'GET /api/phones/p2': [200, inUse],
    'GET /api/phones/p2/diff?from=3&to=7': [200, { from: 3, to: 7, changes, more: true }],
    'GET /api/phones/p2/log?limit=1&after=2': [200, { events: [event(3, 'file', 'file /home/a b')], last: 40 }],
    'GET /api/phones/p2/log?limit=1&after=6': [200, { events: [event(7, 'file', 'file /home/new')], last: 40 }],
  });
  phonePage('helpdesk', inUse, '/files?since=3&at=7');
  const table = await screen.findByRole('table', { name: 'What changed' });
  expect(within(table).getByText('/home/a b')).toBeTruthy();
  expect(within(table).getByText('10 B → 2 KiB')).toBeTruthy();
  expect(within(table).getByText('only its place')).toBeTruthy();
  expect(screen.getByText(/more changes than are shown/)).toBeTruthy();
  expect(how(changed('/a', state(1), state(1, 0o600)))).toBe('rw-r--r-- → rw-------');
  expect(how(changed('/a', state(1), state(1)))).toBe('');
});

test('a phone is verified after saying how, and what was found is told', async () => {
  const side = { kind: 'file', mode: 0o644, uid: 0, gid: 0, size: 3, hash: 'ab' };
  const found = { path: '/home/a%20b', position: 9, kind: 'divergence', phone: side, flash: null, event: null, outcome: 'the phone is asked to tell it again' };
  const verdict = { at: '2026-11-01T00:00:00Z', equal: true, position: 12, root: 'abcdef0123456789', reread: true, findings: [found], unnamed: 2, trouble: null };
  const asked = appliance({
    'GET /api/phones/p2': [200, inUse],
    'GET /api/phones/p2/verification': [200, { running: null, verdict }],
    'POST /api/phones/p2/verification': [202, null],
  });
  phonePage('helpdesk');
  expect(await screen.findByText('Proven equal')).toBeTruthy();
  expect(screen.getByText(/both have the root hash abcdef012345…/)).toBeTruthy();
  expect(screen.getByLabelText('What was found').textContent).toContain('/home/a b was not the same: the phone has a file of 3 B, the flash nothing');
  expect(screen.getByText('And 2 paths more; the log has them.')).toBeTruthy();
  press('Verify');
  expect(asked.some(({ request }) => request.startsWith('POST'))).toBe(false);
  fireEvent.click(await screen.findByLabelText('The phone reads all its files again'));
  await inDialog('Begin');
  await waitFor(() => expect(asked).toContainEqual({ request: 'POST /api/phones/p2/verification', body: { reread: false, heal: true } }));
});

test('rights are told as people know them', () => {
  expect(permissions(0o644)).toBe('rw-r--r--');
  expect(permissions(0o4755)).toBe('rwxr-xr-x');
});

test('phones reach the appliance by its own address, or by the one that the browser found', () => {
  expect(phonesReach('0.0.0.0:7443', 'pollux.example')).toBe('pollux.example:7443');
  expect(phonesReach('[::]:7443', 'pollux.example')).toBe('pollux.example:7443');
  expect(phonesReach('192.0.2.7:7443', 'pollux.example')).toBe('192.0.2.7:7443');
});

const code = { id: 'ab12', note: 'Ada', by: 'root', created_at: '2026-11-01T00:00:00Z', expires_at: '2026-11-02T00:00:00Z', state: 'open', used_by: null, used_at: null };

test('a code is made, shown once with what the phone needs, and deleted after asking', async () => {
  const asked = appliance({
    'GET /api/codes': [200, { codes: [code] }],
    'GET /api/phones': [200, { phones: [] }],
    'GET /api/status': [200, { version: '0.1.0', sync_address: '192.0.2.7:7443', trouble: null }],
    'POST /api/codes': [200, { ...code, code: 'AAAA-BBBB', ca_sha256: 'cafe' }],
    'DELETE /api/codes/ab12': [204, null],
  });
  show(<Enrolment />);
  type('For whom', 'Ada');
  press('Make a code');
  expect((await screen.findByLabelText('Enrolment code')).textContent).toBe('AAAA-BBBB');
  const command = (await screen.findByLabelText(/^On the phone/)).textContent;
  for (const part of ['--appliance 192.0.2.7:7443', '--ca cafe', '--code AAAA-BBBB']) expect(command).toContain(part);
  expect(asked).toContainEqual({ request: 'POST /api/codes', body: { note: 'Ada', expires_in_hours: 24 } });
  press('Delete code ab12');
  expect(asked.some(({ request }) => request.startsWith('DELETE'))).toBe(false);
  await inDialog('Delete');
  await waitFor(() => expect(asked.map(({ request }) => request)).toContain('DELETE /api/codes/ab12'));
});

const users = [
  { name: 'root', role: 'admin', created_at: '2026-11-01T00:00:00Z' },
  { name: 'hanna', role: 'helpdesk', created_at: '2026-11-01T00:00:00Z' },
];

test('a user is added with a made-up password that is shown once', async () => {
  const asked = appliance({ 'GET /api/users': [200, { users }], 'POST /api/users': [200, users[1]] });
  show(<Users me={me('admin')} />);
  press('Add a user');
  await screen.findByRole('dialog');
  type(/Name/, 'Mia');
  fireEvent.click(screen.getByLabelText(/Usage intelligence/));
  press('Add');
  const password = (await screen.findByLabelText('Password', { selector: 'pre' })).textContent;
  expect(asked).toContainEqual({ request: 'POST /api/users', body: { name: 'mia', role: 'mai', password } });
  press('Done');
  await waitFor(() => expect(screen.queryByText(password!)).toBeNull());
});

test('a refused user says why', async () => {
  appliance({ 'GET /api/users': [200, { users }], 'POST /api/users': [409, refusal('there is a user hanna already')] });
  show(<Users me={me('admin')} />);
  press('Add a user');
  await screen.findByRole('dialog');
  type(/Name/, 'hanna');
  press('Add');
  expect((await screen.findByRole('alert')).textContent).toContain('There is a user hanna already.');
});

test('a user is removed after asking, and oneself cannot be', async () => {
  const asked = appliance({ 'GET /api/users': [200, { users }], 'DELETE /api/users/hanna': [204, null] });
  show(<Users me={me('admin')} />);
  fireEvent.click(await screen.findByRole('button', { name: 'Actions for hanna' }));
  fireEvent.click(await screen.findByRole('menuitem', { name: 'Remove' }));
  await inDialog('Remove');
  await waitFor(() => expect(asked.map(({ request }) => request)).toContain('DELETE /api/users/hanna'));
  expect(screen.queryByRole('button', { name: 'Actions for root' })).toBeNull();
});

test('a chosen password is set, and a role changed', async () => {
  const asked = appliance({ 'GET /api/users': [200, { users }], 'PATCH /api/users/hanna': [200, users[1]] });
  show(<Users me={me('admin')} />);
  fireEvent.click(await screen.findByRole('button', { name: 'Actions for hanna' }));
  fireEvent.click(await screen.findByRole('menuitem', { name: 'Reset password' }));
  fireEvent.click(await screen.findByLabelText('I choose it'));
  type(/The password/, 'long enough');
  press('Reset password');
  await waitFor(() => expect(asked).toContainEqual({ request: 'PATCH /api/users/hanna', body: { password: 'long enough' } }));
  fireEvent.click(await screen.findByRole('button', { name: 'Done' }));
  fireEvent.click(await screen.findByRole('button', { name: 'Actions for hanna' }));
  fireEvent.click(await screen.findByRole('menuitem', { name: 'Change role' }));
  fireEvent.click(await screen.findByLabelText(/Administrator/));
  press('Change role');
  await waitFor(() => expect(asked).toContainEqual({ request: 'PATCH /api/users/hanna', body: { role: 'admin' } }));
});
