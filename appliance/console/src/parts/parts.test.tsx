import { fireEvent, render, screen, within } from '@testing-library/react';
import { MantineProvider } from '@mantine/core';
import { expect, test } from 'vitest';

import '../testing';
import { inUse, waiting } from '../testing';
import { inUse as said } from './Assign';
import { compare, DataTable } from './DataTable';
import { twinProgress } from './Facts';
import { sentence } from './Failure';
import { newPassword } from './password';
import { nameOf, readable } from './paths';
import { look } from './Preview';
import { troubles } from './States';
import { ago } from './times';
import { count, duration, size } from './units';

test('numbers have units', () => {
  expect(size(0)).toBe('0 B');
  expect(size(1536)).toBe('1.5 KiB');
  expect(size(5 * 1024 ** 3)).toBe('5 GiB');
  expect(count(1, 'event')).toBe('1 event');
  expect(count(1200, 'event')).toBe('1,200 events');
  expect(duration(0.44)).toBe('0.4 s');
  expect(duration(60)).toBe('1 min');
  expect(duration(125.4)).toBe('2 min 5 s');
  expect(duration(7260)).toBe('2 h 1 min');
});

test('times are told by how long ago, and not to the second', () => {
  const now = Date.parse('2026-11-23T12:00:00Z');
  expect(ago('2026-11-23T11:57:01Z', now)).toBe('2 minutes ago');
  expect(ago('2026-11-23T12:00:30Z', now)).toBe('just now');
  expect(ago('2026-11-22T11:00:00Z', now)).toBe('yesterday');
  expect(ago('2024-10-22T11:00:00Z', now)).toBe('2 years ago');
  expect(ago('2026-11-23T14:00:00Z', now)).toBe('in 2 hours');
});

test('paths are readable where they are text', () => {
  expect(readable('/caf%C3%A9%0A')).toBe('/café\n');
  expect(readable('/%FF')).toBe('/%FF');
  expect(nameOf('/home/a%20b')).toBe('a b');
});

test('phrases of the API become sentences', () => {
  expect(sentence('there is no phone X')).toBe('There is no phone X.');
  expect(sentence('Done.')).toBe('Done.');
});

test('a file is shown by what it is, not by its name', () => {
  const bytes = (...numbers: number[]) => new Uint8Array(numbers);
  expect(look(new TextEncoder().encode('größe\n'))).toEqual({ kind: 'text', text: 'größe\n' });
  expect(look(bytes())).toEqual({ kind: 'text', text: '' });
  expect(look(bytes(0x89, 0x50, 0x4e, 0x47, 13, 10))).toEqual({ kind: 'image', type: 'image/png' });
  expect(look(bytes(0x53, 0x51, 0x4c, 0))).toEqual({ kind: 'neither' });
  expect(look(bytes(0xff, 0xfe, 0x41))).toEqual({ kind: 'neither' });
});

test('made-up passwords can be read out, and differ', () => {
  const made = new Set(Array.from({ length: 50 }, newPassword));
  expect(made.size).toBe(50);
  for (const password of made) expect(password).toMatch(/^[a-hjkmnp-z2-9]{5}(-[a-hjkmnp-z2-9]{5}){2}$/);
});

test('suggestions are what is in use, each once', () => {
  const other = { ...inUse, assignment: { person: 'Ben', department: 'Sales', carrier: 'Aurora' } };
  expect(said([inUse, other, waiting], 'department')).toEqual(['Sales']);
  expect(said([inUse, other, waiting], 'carrier')).toEqual(['Aurora', 'Telekom']);
});

test('how far a twin is behind depends on whether it runs', () => {
  const twin = (state: typeof inUse.twin.state, position: number) => ({ ...inUse, twin: { ...inUse.twin, state, position } });
  expect(twinProgress(twin('running', 40))).toBe('up to date');
  expect(twinProgress(twin('running', 39))).toBe('1 event behind');
  expect(twinProgress(twin('parked', 12))).toBe('parked at event 12');
  expect(twinProgress(twin('stopped', 0))).toBe('stopped');
});

test('what is wrong with a phone is told in words', () => {
  expect(troubles(inUse)).toEqual([]);
  expect(troubles({ ...inUse, conflicts: 2 })).toEqual(['Phone and help desk changed the same: 2 files']);
  expect(troubles({ ...inUse, twin: { ...inUse.twin, state: 'failed', detail: 'no image' } })).toEqual(['The twin has failed: no image']);
});

test('what is not there is last in either direction, and numbers in texts count', () => {
  const sorted = (values: (string | null)[], down: boolean) => values.toSorted((a, b) => compare(a, b, down));
  expect(sorted(['HS-10', null, 'HS-9'], false)).toEqual(['HS-9', 'HS-10', null]);
  expect(sorted(['HS-10', null, 'HS-9'], true)).toEqual(['HS-10', 'HS-9', null]);
  expect(compare(2, 10, false)).toBeLessThan(0);
});

test('a table is sorted by its headings, and shown a page at a time', () => {
  const rows = Array.from({ length: 120 }, (_, i) => ({ name: `row ${i}`, size: (i * 7) % 120 }));
  render(
    <MantineProvider env="test">
      <DataTable
        label="Things"
        noun="thing"
        rows={rows}
        rowKey={(row) => row.name}
        columns={[
          { label: 'Name', show: (row) => row.name },
          { label: 'Size', show: (row) => row.size, sort: (row) => row.size },
        ]}
      />
    </MantineProvider>,
  );
  const table = screen.getByRole('table', { name: 'Things' });
  const names = () => within(table).getAllByRole('row').slice(1).map((row) => row.firstChild!.textContent);
  expect(names()).toHaveLength(50);
  expect(names()[0]).toBe('row 0');
  expect(within(table).queryByRole('button', { name: 'Name' })).toBeNull();
  fireEvent.click(within(table).getByRole('button', { name: 'Size' }));
  expect(screen.getByRole('columnheader', { name: 'Size' }).getAttribute('aria-sort')).toBe('ascending');
  expect(names()[1]).toBe('row 103');
  fireEvent.click(within(table).getByRole('button', { name: 'Size' }));
  expect(screen.getByRole('columnheader', { name: 'Size' }).getAttribute('aria-sort')).toBe('descending');
  fireEvent.click(screen.getByRole('button', { name: '3' }));
  expect(names()).toHaveLength(20);
  expect(names().at(-1)).toBe('row 0');
});
