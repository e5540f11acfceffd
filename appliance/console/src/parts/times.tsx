import { Text, Tooltip } from '@mantine/core';

const UNITS: [Intl.RelativeTimeFormatUnit, number][] = [
  ['day', 86_400],
  ['hour', 3_600],
  ['minute', 60],
  ['second', 1],
];

/** "3 minutes ago", from a time and the present in milliseconds. */
export function ago(time: string, now = Date.now()): string {
  const seconds = Math.round((new Date(time).getTime() - now) / 1000);
  const [unit, size] = UNITS.find(([, size]) => Math.abs(seconds) >= size) ?? ['second', 1];
  return new Intl.RelativeTimeFormat('en', { numeric: 'auto' }).format(Math.round(seconds / size), unit);
}

/** How long ago, with the exact time for who asks. */
export function Ago({ time }: { time: string | null }) {
  if (!time) return <Text span c="dimmed">never</Text>;
  return (
    <Tooltip label={new Date(time).toLocaleString()}>
      <span>{ago(time)}</span>
    </Tooltip>
  );
}
