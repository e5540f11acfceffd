import { Badge, Group } from '@mantine/core';

import type { Phone, TwinState } from '../api';

const TWIN_COLOURS: Partial<Record<TwinState, string>> = { running: 'teal', starting: 'blue', parking: 'blue', failed: 'red' };

/** Where a phone stands, at a glance. */
export function States({ phone }: { phone: Phone }) {
  if (phone.standing === 'quarantined') return <Badge color="orange">in quarantine</Badge>;
  return (
    <Group gap={6}>
      <Badge color={phone.connected ? 'teal' : 'gray'} variant="dot">
        {phone.connected ? 'connected' : 'not connected'}
      </Badge>
      <Badge color={TWIN_COLOURS[phone.twin.state] ?? 'gray'} variant="light">
        twin {phone.twin.state}
      </Badge>
      {phone.lease && <Badge color="grape">driven by {phone.lease.operator}</Badge>}
      {phone.conflicts > 0 && (
        <Badge color="red">
          {phone.conflicts} {phone.conflicts === 1 ? 'conflict' : 'conflicts'}
        </Badge>
      )}
      {phone.sync.trouble && <Badge color="red">not in sync</Badge>}
    </Group>
  );
}
