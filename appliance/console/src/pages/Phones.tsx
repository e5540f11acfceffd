import { Alert, Button, Group, Loader, Paper, Stack, Table, Text, Title } from '@mantine/core';
import { IconDeviceMobileOff, IconLock } from '@tabler/icons-react';
import { useQuery, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { useNavigate } from 'react-router';

import { phones, release, type Me, type Phone } from '../api';
import { Confirm } from '../parts/Confirm';
import { Failure } from '../parts/Failure';
import { States } from '../parts/States';
import { Ago } from '../parts/times';
import { Codes } from './Codes';

/** All phones: those that wait to be let in first, as somebody must decide. */
export function Phones({ me }: { me: Me }) {
  const all = useQuery({ queryKey: ['phones'], queryFn: phones });
  if (all.isPending) return <Loader />;
  if (all.error) return <Failure error={all.error} />;
  const waiting = all.data.filter((phone) => phone.standing === 'quarantined');
  const released = all.data.filter((phone) => phone.standing === 'released');
  return (
    <Stack gap="lg">
      <Title order={2}>Phones</Title>
      {waiting.length > 0 && <Waiting phones={waiting} mayRelease={me.role === 'admin'} />}
      {released.length > 0 ? <Released phones={released} /> : <Nobody waiting={waiting.length} />}
      {me.role === 'admin' && <Codes />}
    </Stack>
  );
}

function Waiting({ phones, mayRelease }: { phones: Phone[]; mayRelease: boolean }) {
  const queries = useQueryClient();
  const [chosen, choose] = useState<Phone | null>(null);
  return (
    <Alert color="orange" icon={<IconLock />} title={`In quarantine: ${phones.length}`}>
      <Table>
        <Table.Tbody>
          {phones.map((phone) => (
            <Table.Tr key={phone.id}>
              <Table.Td fw={600}>{phone.serial}</Table.Td>
              <Table.Td>{phone.model}</Table.Td>
              <Table.Td>
                {phone.os} {phone.os_version}
              </Table.Td>
              <Table.Td>{phone.reason}</Table.Td>
              <Table.Td>
                asked <Ago time={phone.last_seen_at ?? phone.registered_at} />
              </Table.Td>
              <Table.Td ta="right">
                {mayRelease && (
                  <Button size="xs" color="orange" onClick={() => choose(phone)}>
                    Release
                  </Button>
                )}
              </Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
      {!mayRelease && <Text size="sm">An administrator can release them.</Text>}
      {chosen && (
        <Confirm
          title={`Release ${chosen.serial}?`}
          action="Release"
          color="orange"
          withReason
          onConfirm={(reason) => release(chosen.id, reason).then(() => queries.invalidateQueries({ queryKey: ['phones'] }))}
          onClose={() => choose(null)}
        >
          It may then enrol and send its log, and its twin can be started.
        </Confirm>
      )}
    </Alert>
  );
}

function Released({ phones }: { phones: Phone[] }) {
  const navigate = useNavigate();
  return (
    <Paper withBorder>
      <Table highlightOnHover verticalSpacing="sm">
        <Table.Thead>
          <Table.Tr>
            <Table.Th>Serial</Table.Th>
            <Table.Th>Model</Table.Th>
            <Table.Th>State</Table.Th>
            <Table.Th ta="right">Events</Table.Th>
            <Table.Th>Last seen</Table.Th>
          </Table.Tr>
        </Table.Thead>
        <Table.Tbody>
          {phones.map((phone) => (
            <Table.Tr key={phone.id} style={{ cursor: 'pointer' }} onClick={() => navigate(`/phones/${phone.id}`)}>
              <Table.Td fw={600}>{phone.serial}</Table.Td>
              <Table.Td>{phone.model}</Table.Td>
              <Table.Td>
                <States phone={phone} />
              </Table.Td>
              <Table.Td ta="right">{phone.sync.position.toLocaleString()}</Table.Td>
              <Table.Td>{phone.connected ? 'now' : <Ago time={phone.last_seen_at} />}</Table.Td>
            </Table.Tr>
          ))}
        </Table.Tbody>
      </Table>
    </Paper>
  );
}

function Nobody({ waiting }: { waiting: number }) {
  return (
    <Paper withBorder p="xl">
      <Group>
        <IconDeviceMobileOff size={32} opacity={0.5} />
        <div>
          <Text fw={600}>No phone is enrolled yet</Text>
          <Text size="sm" c="dimmed">
            {waiting > 0
              ? 'One waits above to be released.'
              : 'Make an enrolment code and give it to a phone’s agent, or let the phone ask to be admitted.'}
          </Text>
        </div>
      </Group>
    </Paper>
  );
}
