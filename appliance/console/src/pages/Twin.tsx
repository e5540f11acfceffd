import { Alert, Button, Group, Paper, Stack, Table, Text } from '@mantine/core';
import { IconHandClick, IconPlayerPause, IconPlayerPlay, IconPlayerStop, IconScale } from '@tabler/icons-react';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { useEffect, useState } from 'react';

import { actOnTwin, giveLeadBack, prove, screenAt, takeLead, type Me, type Phone, type TwinAction } from '../api';
import { Confirm } from '../parts/Confirm';
import { Failure } from '../parts/Failure';
import { Screen } from '../parts/Screen';
import { Ago } from '../parts/times';

/** How often a held lease is renewed, in ms: well within its life on the appliance. */
const RENEW_MS = 10_000;

/** The twin's screen - beside the phone's own where it is a demo phone - and who leads. */
export function Twin({ phone, me }: { phone: Phone; me: Me }) {
  const mine = phone.lease?.operator === me.user;
  const running = phone.twin.state === 'running';
  return (
    <Group align="flex-start" gap="xl">
      {phone.demo_screen && <Screen url={screenAt(phone.id, 'demo')} live={false} label="Phone" />}
      {running ? (
        <Screen url={screenAt(phone.id, 'twin')} live={mine} label="Twin" />
      ) : (
        phone.standing === 'released' && <NoTwin phone={phone} />
      )}
      <Stack w={380}>
        <Lead phone={phone} me={me} mine={mine} />
        <Facts phone={phone} />
      </Stack>
    </Group>
  );
}

function NoTwin({ phone }: { phone: Phone }) {
  return (
    <Paper withBorder w={380} p="xl">
      <Stack>
        <Text fw={600}>The twin is {phone.twin.state}</Text>
        <Text size="sm" c="dimmed">
          {phone.twin.detail || (phone.sync.complete ? 'Start it to see its screen.' : 'Its flash is still being received.')}
        </Text>
        <TwinButton phone={phone} action="start" icon={<IconPlayerPlay size={16} />} label="Start the twin" />
      </Stack>
    </Paper>
  );
}

function TwinButton({ phone, action, icon, label }: { phone: Phone; action: TwinAction; icon: React.ReactNode; label: string }) {
  const queries = useQueryClient();
  const act = useMutation({
    mutationFn: () => actOnTwin(phone.id, action),
    onSettled: () => queries.invalidateQueries({ queryKey: ['phones'] }),
  });
  return (
    <>
      <Button variant="default" leftSection={icon} loading={act.isPending || phone.twin.state === 'starting'} onClick={() => act.mutate()}>
        {label}
      </Button>
      <Failure error={act.error} />
    </>
  );
}

function Lead({ phone, me, mine }: { phone: Phone; me: Me; mine: boolean }) {
  const queries = useQueryClient();
  const [asking, ask] = useState(false);
  const refresh = () => queries.invalidateQueries({ queryKey: ['phones'] });
  const giveBack = useMutation({ mutationFn: () => giveLeadBack(phone.id), onSettled: refresh });
  const renew = useMutation({ mutationFn: () => takeLead(phone.id), onError: refresh });
  const { mutate } = renew;
  useEffect(() => {
    if (!mine) return;
    const timer = setInterval(() => mutate(), RENEW_MS);
    return () => clearInterval(timer);
  }, [mine, mutate]);

  if (me.role === 'mai' || phone.standing !== 'released') return null;
  if (phone.lease && !mine) {
    return <Alert color="grape">{phone.lease.operator} leads this phone now; you can watch.</Alert>;
  }
  return (
    <Paper withBorder p="md">
      <Stack gap="sm">
        <Text fw={600}>{mine ? 'You lead' : 'The phone leads'}</Text>
        <Text size="sm" c="dimmed">
          {mine
            ? 'Keys and touches on the twin act on the phone as well, and so do the files they change.'
            : 'The twin follows the phone. Take the lead to act on both.'}
        </Text>
        {mine ? (
          <Button color="grape" variant="light" loading={giveBack.isPending} onClick={() => giveBack.mutate()}>
            Give the lead back
          </Button>
        ) : (
          <Button
            color="grape"
            leftSection={<IconHandClick size={16} />}
            disabled={phone.twin.state !== 'running'}
            onClick={() => ask(true)}
          >
            Take the lead
          </Button>
        )}
        <Failure error={giveBack.error ?? renew.error} />
        {phone.twin.state === 'running' && (
          <Group grow>
            <TwinButton phone={phone} action="park" icon={<IconPlayerPause size={16} />} label="Park" />
            <TwinButton phone={phone} action="stop" icon={<IconPlayerStop size={16} />} label="Stop" />
          </Group>
        )}
      </Stack>
      {asking && (
        <Confirm
          title="Take the lead?"
          action="Take the lead"
          color="grape"
          onConfirm={() => takeLead(phone.id).then(refresh)}
          onClose={() => ask(false)}
        >
          What you do on the twin happens on the phone at once. Its user is told that help desk leads.
        </Confirm>
      )}
    </Paper>
  );
}

function Facts({ phone }: { phone: Phone }) {
  const { sync, twin } = phone;
  const compare = useMutation({ mutationFn: () => prove(phone.id) });
  const proof = sync.proof;
  const rows: [string, React.ReactNode][] = [
    ['Model', phone.model],
    ['System', `${phone.os} ${phone.os_version}`],
    ['Image', `${phone.image} (${phone.architecture})`],
    ['Agent', phone.agent_version],
    ['Log', `${sync.position.toLocaleString()} events`],
    ['Flash', sync.applied === sync.position ? 'up to date' : `${(sync.position - sync.applied).toLocaleString()} events behind`],
    ['Twin', twin.position >= sync.position ? 'up to date' : `${(sync.position - twin.position).toLocaleString()} events behind`],
    ['Released', <>by {phone.changed_by ?? 'its enrolment code'}, <Ago time={phone.changed_at} /></>],
  ];
  return (
    <Paper withBorder p="md">
      <Table verticalSpacing={4} withRowBorders={false}>
        <Table.Tbody>
          {rows.map(([name, value]) => (
            <Table.Tr key={name}>
              <Table.Td c="dimmed" w={90}>
                {name}
              </Table.Td>
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
      {proof && (
        <Alert color={proof.equal ? 'teal' : 'red'} mt="sm" title={proof.equal ? 'Proven in sync' : 'Phone and twin differ'}>
          <Text size="sm">
            At event {proof.position.toLocaleString()}, <Ago time={proof.at} />: root {proof.flash_root.slice(0, 16)}…
          </Text>
        </Alert>
      )}
      {phone.connected && (
        <Button mt="sm" variant="subtle" size="xs" leftSection={<IconScale size={14} />} loading={compare.isPending} onClick={() => compare.mutate()}>
          Compare with the phone
        </Button>
      )}
      <Failure error={compare.error} />
    </Paper>
  );
}
