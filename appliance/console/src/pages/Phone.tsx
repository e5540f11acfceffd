import { Alert, Anchor, Breadcrumbs, Button, Center, Group, Loader, Menu, Stack, Tabs, Text, Title } from '@mantine/core';
import { IconDots, IconLock, IconUserEdit } from '@tabler/icons-react';
import { useQuery, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { Link, useNavigate, useParams } from 'react-router';

import { phone as fetchPhone, quarantine, type Me, type Phone } from '../api';
import { Assign } from '../parts/Assign';
import { Confirm } from '../parts/Confirm';
import { Failure } from '../parts/Failure';
import { useKeptLead } from '../parts/Lead';
import { Release } from '../parts/Release';
import { States } from '../parts/States';
import { Ago } from '../parts/times';
import { Conflicts } from './Conflicts';
import { Files } from './Files';
import { Log } from './Log';
import { Twin } from './Twin';

/** One phone: its twin's screen, its log as it grows, its files. */
export default function PhonePage({ me }: { me: Me }) {
  const { id } = useParams() as { id: string };
  const found = useQuery({ queryKey: ['phone', id], queryFn: () => fetchPhone(id) });
  if (found.isPending) {
    return (
      <Center p="xl">
        <Loader aria-label="Loading the phone" />
      </Center>
    );
  }
  return (
    <Stack>
      <Breadcrumbs>
        <Anchor component={Link} to="/phones">
          Phones
        </Anchor>
        <span>{found.data?.serial ?? id}</span>
      </Breadcrumbs>
      {found.data ? <Found phone={found.data} me={me} /> : <Failure error={found.error} retry={found.refetch} />}
    </Stack>
  );
}

function Found({ phone, me }: { phone: Phone; me: Me }) {
  const { tab = 'screen' } = useParams();
  const navigate = useNavigate();
  // Here, so that the lead is kept while the operator looks at log or files.
  useKeptLead(phone, me);
  const { person, department } = phone.assignment;
  return (
    <>
      <title>{`${phone.serial} · Pollux`}</title>
      <Group justify="space-between" align="flex-start">
        <Group>
          <Title order={1} fz="h2">
            {phone.serial}
          </Title>
          {person && <Text c="dimmed">{[person, department].filter(Boolean).join(', ')}</Text>}
          <States phone={phone} />
        </Group>
        {me.role === 'admin' && <Actions phone={phone} />}
      </Group>
      {phone.standing === 'quarantined' && <InQuarantine phone={phone} me={me} />}
      <Tabs value={tab} onChange={(value) => navigate(`/phones/${phone.id}/${value}`, { replace: true })} keepMounted={false}>
        <Tabs.List mb="md">
          <Tabs.Tab value="screen">Screen</Tabs.Tab>
          <Tabs.Tab value="log">Log</Tabs.Tab>
          <Tabs.Tab value="files">Files</Tabs.Tab>
          <Tabs.Tab value="conflicts">Conflicts{phone.conflicts > 0 && ` (${phone.conflicts})`}</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="screen">
          <Twin phone={phone} me={me} />
        </Tabs.Panel>
        <Tabs.Panel value="log">
          <Log phone={phone} />
        </Tabs.Panel>
        <Tabs.Panel value="files">
          <Files phone={phone} />
        </Tabs.Panel>
        <Tabs.Panel value="conflicts">
          <Conflicts phone={phone} />
        </Tabs.Panel>
      </Tabs>
    </>
  );
}

function InQuarantine({ phone, me }: { phone: Phone; me: Me }) {
  const [asking, ask] = useState(false);
  return (
    <Alert color="orange" icon={<IconLock />} title="In quarantine">
      <Group justify="space-between">
        <div>
          <Text size="sm">
            {phone.changed_by ? `Put there by ${phone.changed_by}: ` : 'By itself: '}
            {phone.reason || 'no reason was given'} (<Ago time={phone.changed_at} />
            ).
          </Text>
          <Text size="sm">
            Nothing but its registration is accepted, and it has no running twin.{' '}
            {me.role !== 'admin' && 'An administrator can release it.'}
          </Text>
        </div>
        {me.role === 'admin' && (
          <Button color="orange" onClick={() => ask(true)}>
            Release
          </Button>
        )}
      </Group>
      {asking && <Release phone={phone} onClose={() => ask(false)} />}
    </Alert>
  );
}

function Actions({ phone }: { phone: Phone }) {
  const queries = useQueryClient();
  const [asking, ask] = useState<'assign' | 'quarantine' | null>(null);
  const close = () => ask(null);
  const refresh = () =>
    Promise.all([queries.invalidateQueries({ queryKey: ['phones'] }), queries.invalidateQueries({ queryKey: ['phone', phone.id] })]);
  return (
    <>
      <Menu position="bottom-end">
        <Menu.Target>
          <Button variant="default" leftSection={<IconDots size={16} />}>
            Actions
          </Button>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item leftSection={<IconUserEdit size={16} />} onClick={() => ask('assign')}>
            Say who uses it
          </Menu.Item>
          {phone.standing === 'released' && (
            <Menu.Item color="orange" leftSection={<IconLock size={16} />} onClick={() => ask('quarantine')}>
              Put into quarantine
            </Menu.Item>
          )}
        </Menu.Dropdown>
      </Menu>
      {asking === 'assign' && <Assign phone={phone} onClose={close} />}
      {asking === 'quarantine' && (
        <Confirm
          title={`Put ${phone.serial} into quarantine?`}
          action="Put into quarantine"
          color="orange"
          withReason
          onConfirm={(reason) => quarantine(phone.id, reason).then(refresh)}
          onClose={close}
        >
          Its connection is closed and its twin stopped; nothing but its registration is accepted until it is released. Its log and files stay.
        </Confirm>
      )}
    </>
  );
}
