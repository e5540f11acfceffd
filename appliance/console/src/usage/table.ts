// A report's answer as people read it: what a column is called, what its numbers count, and how they changed.

import type { Cell, Table } from '../api';
import { duration, size } from '../parts/units';

export type Row = Record<string, Cell>;

/** The answer's rows by name of column. */
export function rowsOf(table: Table): Row[] {
  return table.rows.map((row) => Object.fromEntries(table.columns.map((column, i) => [column.name, row[i] ?? null])));
}

/** `minutes_change_pct` as people write it. */
export function heading(name: string): string {
  const words = name.replace(/_(pct|s)$/, '').replaceAll('_', ' ');
  return words.charAt(0).toUpperCase() + words.slice(1);
}

/** A number with its unit, which follows from the name of its column; where the column is what is counted ("calls"), none is needed. */
export function quantity(name: string, number: number): string {
  if (name.endsWith('_s')) return duration(number);
  if (name.endsWith('bytes')) return size(number);
  if (name.endsWith('_pct')) return `${number.toLocaleString()} %`;
  if (name.startsWith('minutes')) return `${number.toLocaleString()} min`;
  return number.toLocaleString();
}

/** How a number changed against the prior period. */
export type Change = { kind: 'up' | 'down' | 'same'; text: string } | { kind: 'new' | 'none'; text: string };

/** `now` against `before`; what began from nothing has no percentage. */
export function changeOf(now: number, before: number): Change {
  if (before === 0) return now === 0 ? { kind: 'none', text: '–' } : { kind: 'new', text: 'new' };
  const percent = Math.round((1000 * (now - before)) / before) / 10;
  if (percent === 0) return { kind: 'same', text: '0 %' };
  const sign = percent > 0 ? '+' : '−';
  return { kind: percent > 0 ? 'up' : 'down', text: `${sign}${Math.abs(percent).toLocaleString()} %` };
}

/** What of a measure's three columns - `calls`, `calls_before`, `calls_change_pct` - this one is. */
export function roleOf(column: string, table: Table): { measure: string; is: 'now' | 'before' | 'change' } | null {
  const has = (name: string) => table.columns.some((column) => column.name === name);
  const [, measure = column, suffix] = /^(.*?)_(before|change_pct)$/.exec(column) ?? [];
  if (!has(measure) || !has(`${measure}_before`)) return null;
  return { measure, is: suffix === 'before' ? 'before' : suffix === 'change_pct' ? 'change' : 'now' };
}

/** A sum over all rows, and the same of the prior period where the report has it. */
export interface Total {
  measure: string;
  now: number;
  before: number | null;
}

/** Totals of the measures that the report compares with the prior period; else of those it draws. */
export function totals(table: Table, drawn: string[]): Total[] {
  const rows = rowsOf(table);
  const sum = (name: string) => rows.reduce((total, row) => total + Number(row[name] ?? 0), 0);
  const compared = table.columns.filter((column) => roleOf(column.name, table)?.is === 'now').map((column) => column.name);
  const measures = compared.length > 0 ? compared : drawn;
  return measures.map((measure) => ({
    measure,
    now: Math.round(10 * sum(measure)) / 10,
    before: compared.length > 0 ? Math.round(10 * sum(`${measure}_before`)) / 10 : null,
  }));
}

/** The answer for spreadsheets [RFC 4180]. */
export function csv(table: Table): string {
  const lines = [table.columns.map((column) => column.name), ...table.rows];
  return lines.map((line) => `${line.map(field).join(',')}\r\n`).join('');
}

function field(cell: Cell): string {
  let text = cell === null ? '' : String(cell);
  // A spreadsheet would take what a phone's user wrote for a formula; numbers, telephone numbers too, are none.
  if (typeof cell === 'string' && /^[=+\-@\t\r]/.test(text) && !/^\+?[\d ]+$/.test(text)) text = `'${text}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}
