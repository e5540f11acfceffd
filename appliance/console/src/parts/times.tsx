import { useSyncExternalStore } from 'react';
import { Text } from '@mantine/core';

/** How often what is said of the present is looked at again, in ms: times below a minute are "just now". */
const TICK_MS = 15_000;

const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
  ['year', 365 * 86_400],
  ['month', 30 * 86_400],
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
];

/** "3 minutes ago", from a time and the present in milliseconds. */
export function ago(time: string, now: number): string {
  const seconds = Math.round((new Date(time).getTime() - now) / 1000);
  const unit = UNITS.find(([, size]) => Math.abs(seconds) >= size);
  // The clocks of browser and appliance may differ by a little, so this is not said to the second.
  if (!unit) return 'just now';
  return new Intl.RelativeTimeFormat('en', { numeric: 'auto' }).format(Math.trunc(seconds / unit[1]), unit[0]);
}

/** A time to the second in the reader's own zone, which it names. */
export function exact(time: string): string {
  return new Date(time).toLocaleString(undefined, { dateStyle: 'full', timeStyle: 'long' });
}

/** How long ago, with the exact time for who asks. */
export function Ago({ time }: { time: string | null }) {
  const now = useSyncExternalStore(watchClock, () => present);
  if (!time) return <Text span inherit c="dimmed">never</Text>;
  return (
    <time dateTime={time} title={exact(time)}>
      {ago(time, now)}
    </time>
  );
}

/** A time of day, with its date unless that is today's. */
export function At({ time }: { time: string }) {
  const at = new Date(time);
  const today = at.toDateString() === new Date().toDateString();
  return (
    <time dateTime={time} title={exact(time)}>
      {at.toLocaleString(undefined, { ...(!today && { dateStyle: 'medium' as const }), timeStyle: 'medium' })}
    </time>
  );
}

// One clock for everything on the page.
let present = Date.now();
let timer: ReturnType<typeof setInterval> | undefined;
const watchers = new Set<() => void>();

function watchClock(watcher: () => void): () => void {
  const tick = () => {
    present = Date.now();
    watchers.forEach((told) => told());
  };
  watchers.add(watcher);
  if (!timer) {
    present = Date.now();
    timer = setInterval(tick, TICK_MS);
  }
  return () => {
    watchers.delete(watcher);
    if (watchers.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };
}
