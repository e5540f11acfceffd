import { ActionIcon, Alert, Badge, Button, Code as Literal, Group, Paper, Select, Stack, Text, TextInput, Title, Tooltip } from '@mantine/core';
import { IconKey, IconTrash } from '@tabler/icons-react';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { type FormEvent, useState } from 'react';
import { Anchor } from '@mantine/core';
import { Link } from 'react-router';

import { codes, deleteCode, newCode, phones, status, type Code, type NewCode } from '../api';
import { Confirm } from '../parts/Confirm';
import { Copyable } from '../parts/Copyable';
import { DataTable, type Column } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { Ago } from '../parts/times';

const LIFETIMES = [
  { value: '1', label: '1 hour' },
  { value: '24', label: '1 day' },
  { value: '168', label: '7 days' },
  { value: '720', label: '30 days' },
];

/** Where phones reach the appliance: what it listens on, or if that is every address, the one by which this browser has found it. */
export function phonesReach(syncAddress: string, host: string): string {
  const [, address = '', port = ''] = /^(.*):(\d+)$/.exec(syncAddress) ?? [];
  return `${address === '0.0.0.0' || address === '[::]' ? host : address}:${port}`;
}

/** Enrolment codes: each lets one phone in, once. */
export default function Enrolment() {
  const queries = useQueryClient();
  const all = useQuery({ queryKey: ['codes'], queryFn: codes });
  const [note, setNote] = useState('');
  const [hours, setHours] = useState('24');
  const make = useMutation({
    mutationFn: () => newCode(note, Number(hours)),
    onSuccess: () => {
      setNote('');
      return queries.invalidateQueries({ queryKey: ['codes'] });
    },
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    make.mutate();
  };
  return (
    <Stack gap="lg">
      <title>Enrolment · Pollux</title>
      <div>
        <Title order={1} fz="h2">
          Enrolment
        </Title>
        <Text c="dimmed">A code lets one phone in, once, without waiting in quarantine.</Text>
      </div>
      <Paper p="md">
        <form onSubmit={submit}>
          <Group align="flex-end">
            <TextInput
              label="For whom"
              placeholder="Ada, new handset"
              maxLength={200}
              value={note}
              onChange={(e) => setNote(e.currentTarget.value)}
              flex={1}
              miw={200}
              maw={420}
            />
            <Select label="Valid for" data={LIFETIMES} value={hours} onChange={(value) => setHours(value ?? hours)} allowDeselect={false} w={130} />
            <Button type="submit" loading={make.isPending} leftSection={<IconKey size={16} />}>
              Make a code
            </Button>
          </Group>
        </form>
        <Failure error={make.error} />
        {make.data && <Made code={make.data} />}
      </Paper>
      <Failure error={all.error} retry={all.refetch} />
      {all.data?.length === 0 && (
        <Empty icon={IconKey} title="No codes yet">
          Make one above for each phone that you hand out. Phones that ask without a code wait in quarantine, on the page Phones.
        </Empty>
      )}
      {all.data && all.data.length > 0 && <Codes codes={all.data} />}
    </Stack>
  );
}

function Made({ code }: { code: NewCode }) {
  const appliance = useQuery({ queryKey: ['status'], queryFn: status });
  const command = (address: string) => `pollux-agent --appliance ${address} \\\n  --ca ${code.ca_sha256} \\\n  --code ${code.code}`;
  return (
    <Alert color="teal" title={`Shown once: the code${code.note && ` for ${code.note}`}`} mt="md">
      <Stack gap="sm">
        <Copyable label="Enrolment code" text={code.code} />
        {appliance.data && (
          <Copyable label="On the phone, start its agent so" text={command(phonesReach(appliance.data.sync_address, window.location.hostname))} />
        )}
        <Text size="sm">
          The phone then appears under Phones by itself. The long number is the SHA-256 of the appliance’s CA: by it the phone knows that it talks
          to this appliance and no other.
        </Text>
        <Failure error={appliance.error} />
      </Stack>
    </Alert>
  );
}

function Codes({ codes }: { codes: Code[] }) {
  const queries = useQueryClient();
  const [chosen, choose] = useState<Code | null>(null);
  const known = useQuery({ queryKey: ['phones'], queryFn: phones });
  const serial = (id: string) => known.data?.find((phone) => phone.id === id)?.serial ?? id;
  const columns: Column<Code>[] = [
    { label: 'Code', show: (code) => <Literal>{code.id}…</Literal> },
    { label: 'For whom', show: (code) => code.note, sort: (code) => code.note || null },
    {
      label: 'State',
      sort: (code) => code.state,
      show: (code) => (
        <Badge variant="light" color={code.state === 'open' ? 'teal' : 'gray'}>
          {code.state}
        </Badge>
      ),
    },
    {
      label: 'Used by',
      sort: (code) => code.used_by && serial(code.used_by),
      show: ({ used_by, used_at }) =>
        used_by && (
          <>
            <Anchor component={Link} to={`/phones/${used_by}`}>
              {serial(used_by)}
            </Anchor>
            , <Ago time={used_at} />
          </>
        ),
    },
    { label: 'Expires', show: (code) => <Ago time={code.expires_at} />, sort: (code) => code.expires_at },
    {
      label: 'Made',
      sort: (code) => code.created_at,
      show: (code) => (
        <>
          by {code.by}, <Ago time={code.created_at} />
        </>
      ),
    },
    {
      label: '',
      align: 'right',
      show: (code) => (
        <Tooltip label="Delete">
          <ActionIcon variant="subtle" color="red" aria-label={`Delete code ${code.id}`} onClick={() => choose(code)}>
            <IconTrash size={16} />
          </ActionIcon>
        </Tooltip>
      ),
    },
  ];
  return (
    <>
      <DataTable label="Enrolment codes" noun="code" rows={codes} columns={columns} rowKey={(code) => code.id} minWidth={660} />
      {chosen && (
        <Confirm
          title={`Delete code ${chosen.id}…?`}
          action="Delete"
          color="red"
          onConfirm={() => deleteCode(chosen.id).then(() => queries.invalidateQueries({ queryKey: ['codes'] }))}
          onClose={() => choose(null)}
        >
          {chosen.state === 'open'
            ? 'Nobody can enrol with it any more.'
            : 'It is gone from this list; a phone that has enrolled with it stays enrolled.'}
        </Confirm>
      )}
    </>
  );
}
