import { MantineProvider } from '@mantine/core';
import { QueryClient, QueryClientProvider } from '@tanstack/react-query';
import { cleanup, fireEvent, render, screen, waitFor } from '@testing-library/react';
import { MemoryRouter } from 'react-router';
import { afterEach, expect, test, vi } from 'vitest';

import type { Phone } from './api';
import { staleAfter } from './live';
import { readable, size } from './pages/Files';
import { Login } from './pages/Login';
import { Phones } from './pages/Phones';
import { heading, lastDays } from './pages/Reports';
import { ago } from './parts/times';

afterEach(cleanup);

/** Answers each request by method and path, as the appliance would, and keeps what was asked. */
function appliance(answers: Record<string, [number, unknown]>) {
  const asked: { request: string; body: unknown }[] = [];
  vi.stubGlobal('fetch', async (path: string, init: RequestInit) => {
    const request = `${init.method} ${path}`;
    asked.push({ request, body: init.body ? JSON.parse(String(init.body)) : undefined });
    const [status, body] = answers[request] ?? [404, { error: { code: 'not_found', message: request, advice: null } }];
    return new Response(JSON.stringify(body), { status, headers: { 'content-type': 'application/json' } });
  });
  return asked;
}

function show(page: React.ReactNode) {
  const queries = new QueryClient({ defaultOptions: { queries: { retry: false } } });
  render(
    <MantineProvider env="test">
      <QueryClientProvider client={queries}>
        <MemoryRouter>{page}</MemoryRouter>
      </QueryClientProvider>
    </MantineProvider>,
  );
}

const waiting: Phone = {
  id: 'p1',
  serial: 'HS-0001',
  model: 'Handset',
  os: 'Debian',
  os_version: '12',
  image: 'handset-arm64',
  architecture: 'arm64',
  agent_version: '0.1.0',
  standing: 'quarantined',
  reason: 'registered without a code',
  changed_by: null,
  changed_at: '2026-11-01T00:00:00Z',
  registered_at: '2026-11-01T00:00:00Z',
  last_seen_at: null,
  connected: false,
  sync: { position: 0, applied: 0, root: null, complete: false, proof: null, trouble: null },
  twin: { state: 'stopped', since: null, detail: '', position: 0, restarts: 0, pid: null },
  lease: null,
  conflicts: 0,
  demo_screen: false,
};

test('a wrong password is told with its advice', async () => {
  appliance({ 'POST /api/login': [401, { error: { code: 'unauthenticated', message: 'wrong password', advice: 'check both' } }] });
  show(<Login expired={false} />);
  fireEvent.change(screen.getByLabelText(/User/), { target: { value: 'ada' } });
  fireEvent.change(screen.getByLabelText(/Password/, { selector: 'input' }), { target: { value: 'x' } });
  fireEvent.click(screen.getByRole('button', { name: 'Log in' }));
  const alert = await screen.findByRole('alert');
  expect(alert.textContent).toContain('wrong password');
  expect(alert.textContent).toContain('check both');
});

test('an administrator releases a waiting phone after confirming, with a reason', async () => {
  const asked = appliance({
    'GET /api/phones': [200, { phones: [waiting] }],
    'GET /api/codes': [200, { codes: [] }],
    'POST /api/phones/p1/release': [200, { ...waiting, standing: 'released' }],
  });
  show(<Phones me={{ user: 'root', role: 'admin', expires_at: '' }} />);
  fireEvent.click(await screen.findByRole('button', { name: 'Release' }));
  expect(asked.some(({ request }) => request.startsWith('POST'))).toBe(false);
  fireEvent.change(await screen.findByLabelText('Reason'), { target: { value: 'known' } });
  fireEvent.click(screen.getAllByRole('button', { name: 'Release' }).at(-1)!);
  await waitFor(() => expect(asked).toContainEqual({ request: 'POST /api/phones/p1/release', body: { reason: 'known' } }));
});

test('help desk sees the quarantine but cannot release', async () => {
  appliance({ 'GET /api/phones': [200, { phones: [waiting] }] });
  show(<Phones me={{ user: 'hd', role: 'helpdesk', expires_at: '' }} />);
  expect(await screen.findByText('HS-0001')).toBeTruthy();
  expect(screen.queryByRole('button', { name: 'Release' })).toBeNull();
  expect(screen.getByText('No phone is enrolled yet')).toBeTruthy();
});

test('notices make stale what they are about', () => {
  expect(staleAfter({ type: 'log', phone: 'p' })).toContainEqual(['log', 'p']);
  expect(staleAfter({ type: 'twin', phone: 'p' })).toEqual([['phones']]);
});

test('what people read', () => {
  expect(size(0)).toBe('0 B');
  expect(size(1536)).toBe('1.5 KiB');
  expect(size(5 * 1024 ** 3)).toBe('5 GiB');
  expect(readable('/caf%C3%A9%0A')).toBe('/café\n');
  expect(readable('/%FF')).toBe('/%FF');
  expect(heading('minutes_change_pct')).toBe('Minutes change %');
  const now = Date.parse('2026-11-23T12:00:00Z');
  expect(ago('2026-11-23T11:57:00Z', now)).toBe('3 minutes ago');
  expect(lastDays(7, new Date(now))).toEqual({ from: '2026-11-17T00:00:00.000Z', to: '2026-11-24T00:00:00.000Z' });
});
