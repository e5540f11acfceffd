import { Alert, Button, Group, Paper, Table, Text } from '@mantine/core';
import { type ReactNode, useState } from 'react';

import type { Me, Phone } from '../api';
import { Assign } from './Assign';
import { Ago } from './times';
import { count } from './units';
import { Verification } from './Verification';

/** How far the twin is behind the phone's log, in words. */
export function twinProgress({ twin, sync }: Phone): string {
  switch (twin.state) {
    case 'running':
      return twin.position >= sync.position ? 'up to date' : `${count(sync.position - twin.position, 'event')} behind`;
    case 'parked':
    case 'parking':
      return `${twin.state} at event ${twin.position.toLocaleString()}`;
    default:
      return twin.state;
  }
}

/** What is known of a phone. */
export function Facts({ phone, me }: { phone: Phone; me: Me }) {
  const [assigning, setAssigning] = useState(false);
  const { sync, assignment } = phone;
  const rows: [string, ReactNode][] = [
    ['Person', assignment.person || <Nobody />],
    ['Department', assignment.department || <Nobody />],
    ['Carrier', assignment.carrier || <Nobody />],
    ['Model', phone.model],
    ['System', `${phone.os} ${phone.os_version}`],
    ['Image', `${phone.image || 'none of ours'} (${phone.architecture})`],
    ['Agent', phone.agent_version],
    ['Log', count(sync.position, 'event')],
    ['Flash', sync.applied >= sync.position ? 'up to date' : `${count(sync.position - sync.applied, 'event')} behind`],
    ['Twin', twinProgress(phone)],
    ['Registered', <Ago time={phone.registered_at} />],
    phone.standing === 'released'
      ? ['Released', <>by {phone.changed_by ?? 'its enrolment code'}, <Ago time={phone.changed_at} /></>]
      : ['Last asked', <Ago time={phone.last_seen_at} />],
  ];
  return (
    <Paper p="md">
      <Table verticalSpacing={4} horizontalSpacing={0} withRowBorders={false} aria-label="About this phone">
        <Table.Tbody>
          {rows.map(([name, value]) => (
            <Table.Tr key={name}>
              <Table.Th c="dimmed" fw={400} w={96} scope="row">
                {name}
              </Table.Th>
              <Table.Td>{value}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      {sync.trouble && (
        <Alert color="red" mt="sm" title="The flash does not follow">
          {sync.trouble}
        </Alert>
      )}
      {phone.usage_trouble && (
        <Alert color="red" mt="sm" title="Its usage cannot be read">
          {phone.usage_trouble}
        </Alert>
      )}
      <Verification phone={phone} />
      <Group mt="sm" gap="xs">
        {me.role === 'admin' && (
          <Button variant="light" size="xs" onClick={() => setAssigning(true)}>
            Say who uses it
          </Button>
        )}
      </Group>
      {assigning && <Assign phone={phone} onClose={() => setAssigning(false)} />}
    </Paper>
  );
}

function Nobody() {
  return (
    <Text span inherit c="dimmed">
      not said
    </Text>
  );
}
