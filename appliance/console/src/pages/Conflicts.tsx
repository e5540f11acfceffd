import { Anchor, Button, Center, Loader, Paper, Table, Text } from '@mantine/core';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';

import { conflicts, dismissConflict, fileAt, type Phone } from '../api';
import { Failure } from '../parts/Failure';
import { Ago } from '../parts/times';
import { readable } from './Files';

/** Paths that phone and help desk changed differently. Both versions are kept; somebody must look. */
export function Conflicts({ phone }: { phone: Phone }) {
  const queries = useQueryClient();
  const all = useQuery({ queryKey: ['conflicts', phone.id], queryFn: () => conflicts(phone.id) });
  const dismiss = useMutation({
    mutationFn: (id: number) => dismissConflict(phone.id, id),
    onSuccess: () => Promise.all([queries.invalidateQueries({ queryKey: ['conflicts'] }), queries.invalidateQueries({ queryKey: ['phones'] })]),
  });
  if (all.isPending) return <Loader />;
  const open = all.data?.filter((conflict) => !conflict.dismissed) ?? [];
  return (
    <Paper withBorder>
      <Failure error={all.error ?? dismiss.error} />
      {open.length === 0 && !all.error && (
        <Center p="xl">
          <Text c="dimmed">Phone and help desk have not changed the same file.</Text>
        </Center>
      )}
      {open.length > 0 && (
        <Table verticalSpacing="sm">
          <Table.Tbody>
            {open.map((conflict) => (
              <Table.Tr key={conflict.id}>
                <Table.Td fw={600}>{readable(conflict.path)}</Table.Td>
                <Table.Td>{conflict.text}</Table.Td>
                <Table.Td>
                  <Ago time={conflict.at} />
                </Table.Td>
                <Table.Td>
                  <Anchor href={`${fileAt(phone.id, conflict.path)}&position=${conflict.our_position}`}>Our version</Anchor>
                  {' · '}
                  <Anchor href={fileAt(phone.id, conflict.path)}>The phone’s version</Anchor>
                </Table.Td>
                <Table.Td ta="right">
                  <Button size="xs" variant="default" onClick={() => dismiss.mutate(conflict.id)}>
                    Seen
                  </Button>
                </Table.Td>
              </Table.Tr>
            ))}
          </Table.Tbody>
        </Table>
      )}
    </Paper>
  );
}
