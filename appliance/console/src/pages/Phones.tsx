import { Alert, Anchor, Button, Center, Group, Loader, SegmentedControl, Stack, Text, TextInput, Title } from '@mantine/core';
import { useHotkeys } from '@mantine/hooks';
import { IconDeviceMobileOff, IconKey, IconLock, IconSearch, IconSearchOff } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useRef, useState } from 'react';
import { Link, useNavigate, useSearchParams } from 'react-router';

import { phones, type Me, type Phone } from '../api';
import { DataTable, type Column } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { Release } from '../parts/Release';
import { States, troubles } from '../parts/States';
import { Ago } from '../parts/times';
import { count } from '../parts/units';

/** What the list can be narrowed to, beside by words. */
const SHOWN = {
  all: { label: 'All', is: () => true },
  connected: { label: 'Connected', is: (phone: Phone) => phone.connected },
  away: { label: 'Not connected', is: (phone: Phone) => !phone.connected },
  driven: { label: 'Driven', is: (phone: Phone) => phone.lease !== null },
  troubled: { label: 'Need attention', is: (phone: Phone) => troubles(phone).length > 0 },
};

/** Whether a phone has all the words somewhere in what people call it by. */
export function matches(phone: Phone, words: string): boolean {
  const { person, department, carrier } = phone.assignment;
  const text = [phone.serial, phone.model, phone.os, phone.os_version, phone.image, person, department, carrier].join('\n').toLowerCase();
  return words.toLowerCase().split(/\s+/).every((word) => text.includes(word));
}

/** All phones: those that wait to be let in first, as somebody must decide. */
export function Phones({ me }: { me: Me }) {
  const all = useQuery({ queryKey: ['phones'], queryFn: phones });
  if (all.isPending) {
    return (
      <Center p="xl">
        <Loader aria-label="Loading phones" />
      </Center>
    );
  }
  if (!all.data) return <Failure error={all.error} retry={all.refetch} />;
  const waiting = all.data.filter((phone) => phone.standing === 'quarantined');
  const released = all.data.filter((phone) => phone.standing === 'released');
  return (
    <Stack gap="lg">
      <title>Phones · Pollux</title>
      <Group justify="space-between">
        <Title order={1} fz="h2">
          Phones
        </Title>
        {me.role === 'admin' && (
          <Button component={Link} to="/enrolment" variant="light" leftSection={<IconKey size={16} />}>
            Enrol a phone
          </Button>
        )}
      </Group>
      {waiting.length > 0 && <Waiting phones={waiting} mayRelease={me.role === 'admin'} />}
      {released.length > 0 ? <Released phones={released} /> : <Nobody waiting={waiting.length} me={me} />}
    </Stack>
  );
}

function Waiting({ phones, mayRelease }: { phones: Phone[]; mayRelease: boolean }) {
  const navigate = useNavigate();
  const [chosen, choose] = useState<Phone | null>(null);
  const columns: Column<Phone>[] = [
    { label: 'Phone', show: (phone) => <Name phone={phone} />, sort: (phone) => phone.serial },
    { label: 'System', show: (phone) => `${phone.os} ${phone.os_version}`, sort: (phone) => `${phone.os} ${phone.os_version}` },
    {
      label: 'Why it waits',
      show: (phone) => (phone.changed_by ? `${phone.reason || 'no reason given'} (${phone.changed_by})` : phone.reason),
      sort: (phone) => phone.reason,
    },
    {
      label: 'Asked last',
      show: (phone) => <Ago time={phone.last_seen_at ?? phone.registered_at} />,
      sort: (phone) => phone.last_seen_at ?? phone.registered_at,
    },
    {
      label: '',
      align: 'right',
      show: (phone) =>
        mayRelease && (
          <Button
            size="xs"
            color="orange"
            onClick={(event) => {
              event.stopPropagation();
              choose(phone);
            }}
          >
            Release
          </Button>
        ),
    },
  ];
  return (
    <Alert color="orange" icon={<IconLock />} title={`In quarantine: ${count(phones.length, 'phone')}`}>
      <Stack gap="sm">
        <Text size="sm">
          Nothing but its registration is accepted from a phone in quarantine.{' '}
          {mayRelease ? 'Release those that you know.' : 'An administrator can release those that are known.'}
        </Text>
        <DataTable
          label="Phones in quarantine"
          noun="phone"
          rows={phones}
          columns={columns}
          rowKey={(phone) => phone.id}
          onRow={(phone) => navigate(`/phones/${phone.id}`)}
        />
      </Stack>
      {chosen && <Release phone={chosen} onClose={() => choose(null)} />}
    </Alert>
  );
}

function Released({ phones }: { phones: Phone[] }) {
  const navigate = useNavigate();
  const [parameters, setParameters] = useSearchParams();
  const search = useRef<HTMLInputElement>(null);
  useHotkeys([['/', () => search.current?.focus()]]);
  const words = parameters.get('q') ?? '';
  const show = parameters.get('show') ?? 'all';
  const set = (name: string, value: string) =>
    setParameters(
      (old) => {
        if (value) old.set(name, value);
        else old.delete(name);
        return old;
      },
      { replace: true },
    );
  const found = phones.filter((phone) => matches(phone, words));
  const kinds = Object.entries(SHOWN).map(([value, { label, is }]) => ({ value, label: `${label} (${found.filter(is).length.toLocaleString()})` }));
  const shown = found.filter((SHOWN[show as keyof typeof SHOWN] ?? SHOWN.all).is);
  return (
    <Stack gap="sm">
      <Group>
        <TextInput
          ref={search}
          aria-label="Search phones"
          placeholder="Serial, model, person, department, carrier"
          title="Press / to search"
          leftSection={<IconSearch size={16} />}
          value={words}
          onChange={(e) => set('q', e.currentTarget.value)}
          flex={1}
          miw={260}
          maw={420}
        />
        <SegmentedControl aria-label="Which phones" value={show} onChange={(value) => set('show', value === 'all' ? '' : value)} data={kinds} />
      </Group>
      {shown.length === 0 ? (
        <Empty icon={IconSearchOff} title="No phone is like that">
          <Anchor component="button" onClick={() => setParameters({}, { replace: true })}>
            Show all phones
          </Anchor>
        </Empty>
      ) : (
        <DataTable
          label="Phones"
          noun="phone"
          rows={shown}
          columns={COLUMNS}
          rowKey={(phone) => phone.id}
          onRow={(phone) => navigate(`/phones/${phone.id}`)}
        />
      )}
    </Stack>
  );
}

const COLUMNS: Column<Phone>[] = [
  { label: 'Phone', show: (phone) => <Name phone={phone} />, sort: (phone) => phone.serial },
  {
    label: 'Person',
    show: ({ assignment }) => <Two first={assignment.person} second={assignment.department} />,
    sort: ({ assignment }) => assignment.person || null,
  },
  { label: 'Carrier', show: ({ assignment }) => assignment.carrier || <None />, sort: ({ assignment }) => assignment.carrier || null },
  { label: 'State', show: (phone) => <States phone={phone} />, sort: (phone) => `${!phone.connected} ${phone.twin.state}` },
  {
    label: 'Last seen',
    show: (phone) => (phone.connected ? 'now' : <Ago time={phone.last_seen_at} />),
    sort: (phone) => (phone.connected ? '9999' : phone.last_seen_at),
  },
];

function Name({ phone }: { phone: Phone }) {
  return (
    <>
      <Anchor component={Link} to={`/phones/${phone.id}`} fw={600} onClick={(event) => event.stopPropagation()}>
        {phone.serial}
      </Anchor>
      <Text size="xs" c="dimmed">
        {phone.model}
      </Text>
    </>
  );
}

function Two({ first, second }: { first: string; second: string }) {
  return (
    <>
      {first || <None />}
      <Text size="xs" c="dimmed">
        {second}
      </Text>
    </>
  );
}

function None() {
  return (
    <Text span inherit c="dimmed">
      –
    </Text>
  );
}

function Nobody({ waiting, me }: { waiting: number; me: Me }) {
  return (
    <Empty icon={IconDeviceMobileOff} title="No phone is enrolled yet">
      {waiting > 0 && me.role === 'admin' && 'Release one of those above, and it is shown here with its twin.'}
      {waiting > 0 && me.role !== 'admin' && 'Those above wait for an administrator to release them.'}
      {waiting === 0 && me.role === 'admin' && (
        <>
          Make an enrolment code and give it to a phone’s agent: the phone is let in at once. A phone that asks without a code waits here until
          you release it.
          <Group justify="center" mt="sm">
            <Button component={Link} to="/enrolment" leftSection={<IconKey size={16} />}>
              Enrol the first phone
            </Button>
          </Group>
        </>
      )}
      {waiting === 0 && me.role !== 'admin' && 'An administrator enrols phones; they are shown here then.'}
    </Empty>
  );
}
