import { ActionIcon, Alert, Badge, Button, Code as Literal, Group, Paper, Stack, Table, Text, TextInput, Title } from '@mantine/core';
import { IconTrash } from '@tabler/icons-react';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';

import { codes, deleteCode, newCode } from '../api';
import { Failure } from '../parts/Failure';
import { Ago } from '../parts/times';

/** Enrolment codes: each lets one phone in, once. */
export function Codes() {
  const queries = useQueryClient();
  const [note, setNote] = useState('');
  const all = useQuery({ queryKey: ['codes'], queryFn: codes });
  const refresh = () => queries.invalidateQueries({ queryKey: ['codes'] });
  const make = useMutation({
    mutationFn: () => newCode(note),
    onSuccess: () => {
      setNote('');
      return refresh();
    },
  });
  const remove = useMutation({ mutationFn: deleteCode, onSuccess: refresh });
  return (
    <Paper withBorder p="md">
      <Stack>
        <Title order={4}>Enrolment codes</Title>
        <Group align="flex-end">
          <TextInput
            label="For whom"
            placeholder="Ada, new handset"
            value={note}
            onChange={(e) => setNote(e.currentTarget.value)}
            w={280}
          />
          <Button variant="light" loading={make.isPending} onClick={() => make.mutate()}>
            Make a code
          </Button>
        </Group>
        {make.data && (
          <Alert color="teal" title="Shown once">
            <Text size="sm">
              Give the phone’s agent this code: <Literal fz="md">{make.data.code}</Literal>
            </Text>
            <Text size="sm" mt={4}>
              The appliance’s CA: <Literal>{make.data.ca_sha256}</Literal>
            </Text>
          </Alert>
        )}
        <Failure error={make.error ?? remove.error ?? all.error} />
        {all.data && all.data.length > 0 && (
          <Table>
            <Table.Tbody>
              {all.data.map((code) => (
                <Table.Tr key={code.id}>
                  <Table.Td>
                    <Literal>{code.id}…</Literal>
                  </Table.Td>
                  <Table.Td>{code.note}</Table.Td>
                  <Table.Td>
                    <Badge variant="light" color={code.state === 'open' ? 'teal' : 'gray'}>
                      {code.state}
                    </Badge>
                  </Table.Td>
                  <Table.Td>
                    by {code.by}, <Ago time={code.created_at} />
                  </Table.Td>
                  <Table.Td ta="right">
                    <ActionIcon variant="subtle" color="red" aria-label={`Delete code ${code.id}`} onClick={() => remove.mutate(code.id)}>
                      <IconTrash size={16} />
                    </ActionIcon>
                  </Table.Td>
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        )}
      </Stack>
    </Paper>
  );
}
