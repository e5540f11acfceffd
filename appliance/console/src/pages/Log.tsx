import { Badge, Center, Loader, Paper, SegmentedControl, Stack, Table, Text } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';

import { log, type LogEvent, type Phone } from '../api';
import { Failure } from '../parts/Failure';

const KINDS = { mmi: 'Keys and touches', file: 'Files', control: 'Agent', command: 'Commands', outcome: 'Outcomes' };
const COLOURS = { mmi: 'blue', file: 'teal', control: 'gray', command: 'grape', outcome: 'grape' };

/** The end of a phone's log, growing as the phone is used; newest first. */
export function Log({ phone }: { phone: Phone }) {
  const [kind, setKind] = useState<'all' | LogEvent['kind']>('all');
  const page = useQuery({ queryKey: ['log', phone.id], queryFn: () => log(phone.id, null, 500), placeholderData: (old) => old });
  if (page.isPending) return <Loader />;
  if (page.error) return <Failure error={page.error} />;
  const shown = page.data.events.filter((event) => kind === 'all' || event.kind === kind).reverse();
  return (
    <Stack>
      <SegmentedControl
        w="fit-content"
        value={kind}
        onChange={(value) => setKind(value as typeof kind)}
        data={[{ value: 'all', label: 'All' }, ...Object.entries(KINDS).map(([value, label]) => ({ value, label }))]}
      />
      <Paper withBorder>
        {shown.length === 0 ? (
          <Center p="xl">
            <Text c="dimmed">Nothing of this kind has happened yet.</Text>
          </Center>
        ) : (
          <Table verticalSpacing={4} striped>
            <Table.Tbody>
              {shown.map((event) => (
                <Table.Tr key={event.position}>
                  <Table.Td w={80} ta="right" c="dimmed">
                    {event.position}
                  </Table.Td>
                  <Table.Td w={110}>{new Date(event.at).toLocaleTimeString()}</Table.Td>
                  <Table.Td w={100}>
                    <Badge size="sm" variant="light" color={event.origin === 'helpdesk' ? 'grape' : COLOURS[event.kind]}>
                      {event.origin === 'helpdesk' ? 'help desk' : event.kind}
                    </Badge>
                  </Table.Td>
                  <Table.Td style={{ wordBreak: 'break-all' }}>{event.summary}</Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        )}
      </Paper>
      <Text size="sm" c="dimmed">
        The last {page.data.events.length.toLocaleString()} of {page.data.last.toLocaleString()} events.
      </Text>
    </Stack>
  );
}
