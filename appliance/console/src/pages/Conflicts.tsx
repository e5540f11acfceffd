import { Anchor, Button, Center, Group, Loader, Stack, Text } from '@mantine/core';
import { IconGitMerge } from '@tabler/icons-react';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';

import { conflicts, dismissConflict, type Conflict, type Phone } from '../api';
import { DataTable, type Column } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { readable } from '../parts/paths';
import { Preview } from '../parts/Preview';
import { Ago } from '../parts/times';

/** Paths that phone and help desk changed differently. Both versions are kept; somebody must look. */
export function Conflicts({ phone }: { phone: Phone }) {
  const queries = useQueryClient();
  const [shown, show] = useState<{ path: string; position: number | null } | null>(null);
  const all = useQuery({ queryKey: ['conflicts', phone.id], queryFn: () => conflicts(phone.id) });
  const dismiss = useMutation({
    mutationFn: (id: number) => dismissConflict(phone.id, id),
    onSuccess: () =>
      Promise.all([['conflicts', phone.id], ['phone', phone.id], ['phones']].map((queryKey) => queries.invalidateQueries({ queryKey }))),
  });
  if (all.isPending) {
    return (
      <Center p="xl">
        <Loader aria-label="Loading conflicts" />
      </Center>
    );
  }
  const open = all.data?.filter((conflict) => !conflict.dismissed) ?? [];
  const columns: Column<Conflict>[] = [
    { label: 'File', sort: ({ path }) => path, show: ({ path }) => <Text size="sm" fw={600} style={{ wordBreak: 'break-all' }}>{readable(path)}</Text> },
    { label: 'What the phone said', show: ({ text }) => text },
    { label: 'When', sort: ({ at }) => at, show: ({ at }) => <Ago time={at} /> },
    {
      label: 'Look at',
      show: ({ path, our_position }) => (
        <Group gap="xs">
          <Anchor component="button" size="sm" onClick={() => show({ path, position: our_position })}>
            Help desk’s version
          </Anchor>
          <Anchor component="button" size="sm" onClick={() => show({ path, position: null })}>
            The phone’s version
          </Anchor>
        </Group>
      ),
    },
    {
      label: '',
      align: 'right',
      show: ({ id }) => (
        <Button size="xs" variant="default" loading={dismiss.isPending && dismiss.variables === id} onClick={() => dismiss.mutate(id)}>
          Mark as seen
        </Button>
      ),
    },
  ];
  return (
    <Stack>
      <Failure error={all.error ?? dismiss.error} />
      {open.length === 0 && !all.error && (
        <Empty icon={IconGitMerge} title="No conflicts">
          When phone and help desk change the same file at the same time, the phone’s version stands, help desk’s is kept, and both are shown
          here.
        </Empty>
      )}
      {open.length > 0 && (
        <>
          <Text size="sm" c="dimmed">
            The phone’s version stands. Help desk’s is kept in the log; to have it on the phone, take the lead and make the change again.
          </Text>
          <DataTable label="Conflicts" noun="conflict" rows={open} columns={columns} rowKey={({ id }) => id} minWidth={760} />
        </>
      )}
      {shown && <Preview phone={phone} path={shown.path} position={shown.position} onClose={() => show(null)} />}
    </Stack>
  );
}
