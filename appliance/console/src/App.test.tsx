import { act, fireEvent, screen, waitFor } from '@testing-library/react';
import { expect, test, vi } from 'vitest';

import { App } from './App';
import type { Role } from './api';
import { appliance, me, refusal, show } from './testing';

vi.mock('@novnc/novnc', () => ({ default: class extends EventTarget {} }));

/** Never says anything. */
class Silent extends EventTarget {
  close() {}
}

function open(role: Role, address: string) {
  vi.stubGlobal('EventSource', Silent);
  const asked = appliance({
    'GET /api/me': [200, me(role)],
    'GET /api/phones': [200, { phones: [] }],
    'GET /api/reports': [200, { reports: [] }],
    'GET /api/status': [200, { version: '0.1.0', sync_address: '', trouble: null }],
    'GET /api/users': [200, { users: [] }],
  });
  show(<App />, address);
  return asked;
}

test.each<[Role, string[]]>([
  ['helpdesk', ['Phones', 'Find']],
  ['mai', ['Usage']],
  ['admin', ['Phones', 'Find', 'Usage', 'Enrolment', 'Users']],
])('%s sees the sections %s', async (role, sections) => {
  open(role, '/');
  const links = await screen.findAllByRole('link', { name: /^(Phones|Find|Usage|Enrolment|Users)$/ });
  expect(links.map((link) => link.textContent)).toEqual(sections);
});

test.each<[Role, string, string]>([
  ['mai', '/phones', '/usage'],
  ['mai', '/phones/p1/log', '/usage'],
  ['helpdesk', '/usage', '/phones'],
  ['helpdesk', '/users', '/phones'],
  ['admin', '/users', '/users'],
])('%s who opens %s is at %s, and asks for nothing forbidden', async (role, address, at) => {
  const asked = open(role, address);
  await screen.findByRole('heading', { level: 1 });
  await waitFor(() => expect(screen.getByTestId('address').textContent).toBe(at));
  const forbidden = { mai: /users|codes|log|files/, helpdesk: /users|codes|reports/, admin: /^$/ }[role];
  expect(asked.map(({ request }) => request).filter((request) => forbidden.test(request))).toEqual([]);
});

test('an appliance in trouble says so on every page', async () => {
  vi.stubGlobal('EventSource', Silent);
  appliance({
    'GET /api/me': [200, me('mai')],
    'GET /api/reports': [200, { reports: [] }],
    'GET /api/status': [200, { version: '0.1.0', sync_address: '', trouble: 'the disk is full' }],
  });
  show(<App />);
  const alert = await screen.findByRole('alert');
  expect(alert.textContent).toContain('Nothing is accepted from phones');
  expect(alert.textContent).toContain('The disk is full.');
});

test('nobody is asked to log in, and told when that fails', async () => {
  appliance({ 'GET /api/me': [401, refusal('you are not logged in')], 'POST /api/login': [401, refusal('wrong password')] });
  show(<App />);
  fireEvent.change(await screen.findByLabelText(/User/), { target: { value: 'ada' } });
  fireEvent.change(screen.getByLabelText(/Password/, { selector: 'input' }), { target: { value: 'x' } });
  fireEvent.click(screen.getByRole('button', { name: 'Log in' }));
  expect((await screen.findByRole('alert')).textContent).toContain('Wrong password.');
  await act(async () => {});
  expect(screen.getByRole('alert')).toBeTruthy();
  expect(screen.getByLabelText<HTMLInputElement>(/User/).value).toBe('ada');
});

test('who was logged in and is no more is told so, by whatever is asked next', async () => {
  vi.stubGlobal('EventSource', Silent);
  const answers: Parameters<typeof appliance>[0] = { 'GET /api/me': [200, me('admin')], 'GET /api/phones': [200, { phones: [] }] };
  appliance(answers);
  show(<App />, '/phones');
  await screen.findByText('No phone is enrolled yet');
  answers['GET /api/me'] = answers['GET /api/users'] = [401, refusal('you are not logged in')];
  fireEvent.click(screen.getByRole('link', { name: 'Users' }));
  expect(await screen.findByText(/Your login has ended/)).toBeTruthy();
});
