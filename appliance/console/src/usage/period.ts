// The period of a report, in whole days of the reader's own zone, as the page's address keeps it.

import type { Period } from '../api';

export const PERIODS = { '1': 'Today', '7': '7 days', '30': '30 days', '90': '90 days' };

/** What is chosen: the last so many days, or from one day to another, both included, as `YYYY-MM-DD`. */
export type Choice = { days: string } | { from: string; to: string };

/** The choice that an address makes; 30 days where it makes none. */
export function choiceOf(parameters: URLSearchParams): Choice {
  const [from, to, days] = ['from', 'to', 'days'].map((name) => parameters.get(name));
  if (from && to) return { from, to };
  return { days: days && days in PERIODS ? days : '30' };
}

/** The last `days` days up to the end of the present one. */
export function lastDays(days: number, now: Date): Period {
  const midnight = (offset: number) => new Date(now.getFullYear(), now.getMonth(), now.getDate() + offset).toISOString();
  return { from: midnight(1 - days), to: midnight(1) };
}

/** The period of a choice; null while it is none, as when one day is missing or they are in the wrong order. */
export function periodOf(choice: Choice, now: Date): Period | null {
  if ('days' in choice) return lastDays(Number(choice.days), now);
  const [from, last] = [day(choice.from), day(choice.to)];
  if (!from || !last || from > last) return null;
  last.setDate(last.getDate() + 1);
  return { from: from.toISOString(), to: last.toISOString() };
}

/** The period of equal length before, that a report compares with. */
export function prior({ from, to }: Period): Period {
  const length = Date.parse(to) - Date.parse(from);
  return { from: new Date(Date.parse(from) - length).toISOString(), to: from };
}

/** "1 Nov – 30 Nov 2026": first and last day. */
export function named({ from, to }: Period): string {
  const format = new Intl.DateTimeFormat(undefined, { day: 'numeric', month: 'short', year: 'numeric' });
  return format.formatRange(new Date(from), new Date(Date.parse(to) - 1));
}

/** Midnight at the beginning of `YYYY-MM-DD` here. */
function day(text: string): Date | null {
  const date = new Date(`${text}T00:00:00`);
  return Number.isNaN(date.getTime()) ? null : date;
}
