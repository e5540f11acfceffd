import { Group, Paper, SimpleGrid, Text } from '@mantine/core';
import { IconArrowDownRight, IconArrowUpRight, IconEqual, IconSparkles } from '@tabler/icons-react';

import { changeOf, heading, quantity, type Total } from './table';

/** The sums over everybody, each with its change against the prior period. */
export function Totals({ totals }: { totals: Total[] }) {
  if (totals.length === 0) return null;
  return (
    <SimpleGrid cols={{ base: 1, xs: 3, lg: 4 }}>
      {totals.map(({ measure, now, before }) => (
        <Paper key={measure} p="md">
          <Text size="sm" c="dimmed">
            {heading(measure)}
          </Text>
          <Group align="baseline" gap="sm">
            <Text fz={28} fw={650} lh={1.3}>
              {quantity(measure, now)}
            </Text>
            {before !== null && <Changed now={now} before={before} measure={measure} />}
          </Group>
          {before !== null && (
            <Text size="xs" c="dimmed">
              {quantity(measure, before)} before
            </Text>
          )}
        </Paper>
      ))}
    </SimpleGrid>
  );
}

const LOOKS = {
  up: { icon: IconArrowUpRight, color: 'light-dark(var(--mantine-color-teal-8), var(--mantine-color-teal-4))', words: 'up' },
  down: { icon: IconArrowDownRight, color: 'light-dark(var(--mantine-color-orange-8), var(--mantine-color-orange-4))', words: 'down' },
  same: { icon: IconEqual, color: 'dimmed', words: 'unchanged' },
  new: { icon: IconSparkles, color: 'light-dark(var(--mantine-color-blue-7), var(--mantine-color-blue-4))', words: 'new' },
  none: { icon: null, color: 'dimmed', words: 'none in either period' },
};

/** A change by sign, icon and colour: none of them alone tells it. */
export function Changed({ now, before, measure }: { now: number; before: number; measure: string }) {
  const change = changeOf(now, before);
  const { icon: Icon, color, words } = LOOKS[change.kind];
  return (
    <Group gap={2} wrap="nowrap" component="span" display="inline-flex" title={`${quantity(measure, now)}, ${words}; before: ${quantity(measure, before)}`}>
      {Icon && <Icon size={16} color={color === 'dimmed' ? 'var(--mantine-color-dimmed)' : color} aria-hidden />}
      <Text span inherit fw={600} c={color} style={{ whiteSpace: 'nowrap' }}>
        {change.text}
      </Text>
    </Group>
  );
}
