import { fireEvent, screen, waitFor, within } from '@testing-library/react';
import { expect, test } from 'vitest';

import type { Report, Table } from '../api';
import { appliance, inUse, me, show } from '../testing';
import { pictureOf } from './Chart';
import { choiceOf, lastDays, periodOf, prior } from './period';
import { Records } from './Records';
import { recordsBehind, ReportTable } from './ReportTable';
import { changeOf, csv, heading, quantity, roleOf, rowsOf, totals } from './table';
import Usage from './Usage';

const overall: Table = {
  columns: [
    { name: 'person', type: 'text' },
    { name: 'calls', type: 'number' },
    { name: 'calls_before', type: 'number' },
    { name: 'calls_change_pct', type: 'number' },
  ],
  rows: [
    ['Ada', 6, 4, 50],
    ['Ben', 3, 0, null],
  ],
  truncated: false,
};

const report: Report = {
  name: 'overall',
  title: 'Overall',
  about: '',
  chart: { kind: 'bar', measures: ['calls'], by: ['person'] },
  records: [
    { table: 'calls', by: ['person'] },
    { table: 'messages', by: ['person'] },
  ],
};

test('a change has a sign and a kind, and none from nothing', () => {
  expect(changeOf(6, 4)).toEqual({ kind: 'up', text: '+50 %' });
  expect(changeOf(1, 3)).toEqual({ kind: 'down', text: '−66.7 %' });
  expect(changeOf(4, 4)).toEqual({ kind: 'same', text: '0 %' });
  expect(changeOf(3, 0)).toEqual({ kind: 'new', text: 'new' });
  expect(changeOf(0, 0)).toEqual({ kind: 'none', text: '–' });
});

test('columns are named and counted as people do', () => {
  expect(heading('minutes_change_pct')).toBe('Minutes change');
  expect(quantity('minutes_before', 1234.5)).toBe('1,234.5 min');
  expect(quantity('duration_s', 61)).toBe('1 min 1 s');
  expect(quantity('bytes', 2048)).toBe('2 KiB');
  expect(quantity('calls', 12)).toBe('12');
  expect(roleOf('calls_change_pct', overall)).toEqual({ measure: 'calls', is: 'change' });
  expect(roleOf('calls', overall)).toEqual({ measure: 'calls', is: 'now' });
  expect(roleOf('person', overall)).toBeNull();
});

test('totals compare what the report compares, else add up what it draws', () => {
  expect(totals(overall, [])).toEqual([{ measure: 'calls', now: 9, before: 4 }]);
  const plain: Table = { columns: overall.columns.slice(0, 2), rows: [['Ada', 6], ['Ben', null]], truncated: false };
  expect(totals(plain, ['calls'])).toEqual([{ measure: 'calls', now: 6, before: null }]);
});

test('spreadsheets get texts as texts', () => {
  const table: Table = {
    columns: [{ name: 'party', type: 'text' }, { name: 'calls', type: 'number' }],
    rows: [['=1+1', -3], ['+49 171', null], ['a "b", c', 2]],
    truncated: false,
  };
  expect(csv(table)).toBe('party,calls\r\n\'=1+1,-3\r\n+49 171,\r\n"a ""b"", c",2\r\n');
});

test('one measure by two columns is drawn in parts, so that carriers are beside each other', () => {
  const rows = [
    { person: 'Ada', carrier: 'Aurora', minutes: 5 },
    { person: 'Ada', carrier: '', minutes: 2 },
    { person: 'Ben', carrier: 'Aurora', minutes: 1 },
  ];
  const picture = pictureOf({ kind: 'bar', measures: ['minutes'], by: ['person', 'carrier'] }, rows);
  expect(picture.series.map(({ label }) => label)).toEqual(['Aurora', 'not said']);
  expect(picture.data).toEqual([
    { label: 'Ada', 'of Aurora': 5, 'of not said': 2 },
    { label: 'Ben', 'of Aurora': 1 },
  ]);
  const two = pictureOf({ kind: 'bar', measures: ['calls', 'messages'], by: ['person'] }, [{ person: 'Ada', calls: 1, messages: 2 }]);
  expect(two.data).toEqual([{ label: 'Ada', calls: 1, messages: 2 }]);
});

test('only so many bars are drawn, and the rest is counted', () => {
  const rows = Array.from({ length: 23 }, (_, i) => ({ person: `P${i}`, calls: i }));
  const picture = pictureOf(report.chart!, rows);
  expect([picture.data.length, picture.left]).toEqual([20, 3]);
});

// The zone is Europe/Berlin (vite.config.ts); its summer time ended on 25 October 2026.
test('periods are whole days here, those with a change of the clock too', () => {
  const now = new Date('2026-10-26T08:00:00Z');
  expect(lastDays(1, now)).toEqual({ from: '2026-10-25T23:00:00.000Z', to: '2026-10-26T23:00:00.000Z' });
  expect(lastDays(7, now)).toEqual({ from: '2026-10-19T22:00:00.000Z', to: '2026-10-26T23:00:00.000Z' });
  expect(periodOf({ from: '2026-10-25', to: '2026-10-25' }, now)).toEqual({ from: '2026-10-24T22:00:00.000Z', to: '2026-10-25T23:00:00.000Z' });
  expect(periodOf({ from: '2026-10-25', to: '2026-10-24' }, now)).toBeNull();
  expect(periodOf({ from: 'soon', to: '2026-10-24' }, now)).toBeNull();
  expect(prior({ from: '2026-10-10T00:00:00Z', to: '2026-10-12T00:00:00Z' }).from).toBe('2026-10-08T00:00:00.000Z');
});

test('an address makes a choice of period, or none that is sound', () => {
  const choice = (query: string) => choiceOf(new URLSearchParams(query));
  expect(choice('days=7')).toEqual({ days: '7' });
  expect(choice('days=-1')).toEqual({ days: '30' });
  expect(choice('from=2026-01-01&to=2026-01-31&days=7')).toEqual({ from: '2026-01-01', to: '2026-01-31' });
});

const period = { from: '2026-11-01T00:00:00.000Z', to: '2026-11-02T00:00:00.000Z' };

test('a number leads to its records: of its own table, and of the prior period where it is of that', () => {
  const asked: unknown[] = [];
  show(<ReportTable report={report} table={overall} period={period} onAsk={(what) => asked.push(what)} />);
  fireEvent.click(screen.getByRole('button', { name: '4: records behind Calls before of Ada' }));
  expect(asked).toEqual([
    { title: 'Calls before of Ada: 4', period: prior(period), tables: [{ table: 'calls', by: ['person'] }], row: rowsOf(overall)[0] },
  ]);
  expect(screen.queryByRole('button', { name: /^0:/ })).toBeNull();
  expect(recordsBehind(report, 'minutes').map(({ table }) => table)).toEqual(['calls', 'messages']);
});

test.each([
  ['admin', true],
  ['mai', false],
] as const)('to %s a record tells where it comes from, and leads to the log: %s', async (role, leads) => {
  const columns = ['phone', 'direction', 'party', 'source_path', 'source_row', 'position'].map((name) => ({ name, type: name === 'source_row' || name === 'position' ? 'number' : 'text' }));
  const records = { columns, rows: [['p2', 'out', '01715', '/home/user/records.db', 3, 37]], truncated: false };
  const path = `/api/reports/overall/records/calls?${new URLSearchParams({ person: 'Ada', ...period })}`;
  appliance({ [`GET ${path}`]: [200, records], 'GET /api/phones': [200, { phones: [inUse] }] });
  const asked = { title: 'Calls of Ada: 1', period, tables: report.records.slice(0, 1), row: { person: 'Ada' } };
  show(<Records report={report} asked={asked} me={me(role)} onClose={() => {}} />);
  const table = await screen.findByRole('table', { name: 'Calls' });
  expect(within(table).getByText('01715')).toBeTruthy();
  expect(within(table).getByText('records.db, row 3')).toBeTruthy();
  await waitFor(() => expect(within(table).getByText('HS-0002')).toBeTruthy());
  const link = within(table).queryByRole('link', { name: 'event 37' });
  expect(link?.getAttribute('href')).toBe(leads ? '/phones/p2/log?at=37' : undefined);
});

test('a report tells whose usage is not all in it', async () => {
  const choice = { from: '2026-11-01', to: '2026-11-02' };
  const path = `/api/reports/${report.name}?${new URLSearchParams({ ...periodOf(choice, new Date())! })}`;
  const unread = [{ phone: 'HS-0001', person: 'Ada', trouble: '/home/user/records.db is not sound' }];
  appliance({ 'GET /api/reports': [200, { reports: [report] }], [`GET ${path}`]: [200, { columns: [], rows: [], truncated: false, unread }] });
  show(<Usage me={me('mai')} />, `/usage?${new URLSearchParams(choice)}`);
  const alert = await screen.findByRole('alert', { name: 'Not all is in it of Ada' });
  expect(alert.textContent).toContain('/home/user/records.db is not sound.');
});
