// What the tests of the pages share: an appliance that answers as it is told, and pages shown as they are in the browser.
import { MantineProvider } from '@mantine/core';
import { QueryClientProvider } from '@tanstack/react-query';
import { cleanup, render } from '@testing-library/react';
import type { ReactNode } from 'react';
import { MemoryRouter, useLocation } from 'react-router';
import { afterEach, vi } from 'vitest';

import type { Me, Phone, Role } from './api';
import { newQueries } from './queries';
import { theme } from './theme';

afterEach(() => {
  cleanup();
  vi.unstubAllGlobals();
});

export const me = (role: Role): Me => ({ user: role === 'admin' ? 'root' : 'hanna', role, expires_at: '2026-11-02T00:00:00Z' });

/** A phone that waits to be let in. */
export const waiting: Phone = {
  id: 'p1',
  serial: 'HS-0001',
  model: 'Handset',
  os: 'Debian',
  os_version: '12',
  image: 'handset-arm64',
  architecture: 'arm64',
  agent_version: '0.1.0',
  assignment: { person: '', department: '', carrier: '' },
  standing: 'quarantined',
  reason: 'registered without a code',
  changed_by: null,
  changed_at: '2026-11-01T00:00:00Z',
  registered_at: '2026-11-01T00:00:00Z',
  last_seen_at: null,
  connected: false,
  sync: { position: 0, applied: 0, root: null, complete: false, proof: null, trouble: null },
  usage_trouble: null,
  twin: { state: 'stopped', since: null, detail: '', position: 0, restarts: 0, pid: null, cpu: null, last_end: null, forks: [] },
  lease: null,
  conflicts: 0,
  demo_screen: false,
};

/** A phone in use, in step with its twin. */
export const inUse: Phone = {
  ...waiting,
  id: 'p2',
  serial: 'HS-0002',
  assignment: { person: 'Ada', department: 'Sales', carrier: 'Telekom' },
  standing: 'released',
  connected: true,
  sync: { position: 40, applied: 40, root: 'ab', complete: true, proof: null, trouble: null },
  twin: { state: 'running', since: '2026-11-01T00:00:00Z', detail: '', position: 40, restarts: 0, pid: 7, cpu: 'arm64, emulated (cortex-a53)', last_end: null, forks: [] },
};

export interface Asked {
  request: string;
  body: unknown;
}

/** Answers each request by method and path, as the appliance would, and keeps what was asked. */
export function appliance(answers: Record<string, [number, unknown]>): Asked[] {
  const asked: Asked[] = [];
  vi.stubGlobal('fetch', async (path: string, init: RequestInit) => {
    const request = `${init.method} ${path}`;
    asked.push({ request, body: init.body ? JSON.parse(String(init.body)) : undefined });
    const [status, body] = answers[request] ?? [404, { error: { code: 'not_found', message: `not told: ${request}`, advice: null } }];
    return new Response(status === 204 ? null : JSON.stringify(body), { status, headers: { 'content-type': 'application/json' } });
  });
  return asked;
}

/** A refusal as the appliance words it. */
export const refusal = (message: string, advice: string | null = null) => ({ error: { code: 'invalid', message, advice } });

/** Shows a page at an address; the address as it becomes is in the element with the test id `address`. */
export function show(page: ReactNode, address = '/') {
  render(
    <MantineProvider theme={theme} env="test">
      <QueryClientProvider client={newQueries()}>
        <MemoryRouter initialEntries={[address]}>
          {page}
          <Address />
        </MemoryRouter>
      </QueryClientProvider>
    </MantineProvider>,
  );
}

function Address() {
  const { pathname, search } = useLocation();
  return <output data-testid="address">{pathname + search}</output>;
}
