import { Badge, Group, Tooltip } from '@mantine/core';

import type { Phone, TwinState } from '../api';
import { count } from './units';

const TWIN_COLOURS: Partial<Record<TwinState, string>> = { running: 'teal', starting: 'blue', parking: 'blue', failed: 'red' };

/** What is wrong with a phone, in words; empty when nothing is. */
export function troubles(phone: Phone): string[] {
  const { sync, twin } = phone;
  return [
    phone.conflicts > 0 && `Phone and help desk changed the same: ${count(phone.conflicts, 'file')}`,
    sync.trouble && `The flash does not follow: ${sync.trouble}`,
    sync.proof && !sync.proof.equal && 'Phone and flash were compared, and differ',
    twin.state === 'failed' && `The twin has failed: ${twin.detail}`,
    phone.usage_trouble && `Its usage cannot be read: ${phone.usage_trouble}`,
  ].filter((trouble) => typeof trouble === 'string');
}

/** Where a phone stands, at a glance. */
export function States({ phone }: { phone: Phone }) {
  if (phone.standing === 'quarantined') return <Badge color="orange">in quarantine</Badge>;
  const wrong = troubles(phone);
  return (
    <Group gap={6}>
      <Badge color={phone.connected ? 'teal' : 'gray.5'} variant="dot">
        {phone.connected ? 'connected' : 'not connected'}
      </Badge>
      <Badge color={TWIN_COLOURS[phone.twin.state] ?? 'gray'} variant="light">
        twin {phone.twin.state}
      </Badge>
      {phone.lease && <Badge color="grape">driven by {phone.lease.operator}</Badge>}
      {wrong.length > 0 && (
        <Tooltip label={wrong.join('\n')} multiline maw={420} style={{ whiteSpace: 'pre-line' }}>
          <Badge color="red" tabIndex={0}>
            {phone.conflicts > 0 && wrong.length === 1 ? count(phone.conflicts, 'conflict') : 'needs attention'}
          </Badge>
        </Tooltip>
      )}
    </Group>
  );
}
