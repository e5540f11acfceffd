import { Autocomplete, Button, Group, Modal, Stack, Text } from '@mantine/core';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { type FormEvent, useState } from 'react';

import { assign, phones, type Assignment, type Phone } from '../api';
import { Failure } from './Failure';

const FIELDS: { field: keyof Assignment; label: string; description: string }[] = [
  { field: 'person', label: 'Person', description: 'Who uses the phone; reports name the serial while nobody is named' },
  { field: 'department', label: 'Department', description: 'Where they work' },
  { field: 'carrier', label: 'Carrier', description: 'On whose network the phone is' },
];

/** What is said of other phones already, in order, each once: so that one department does not get two spellings. */
export function inUse(phones: Phone[], field: keyof Assignment): string[] {
  const values = new Set(phones.map((phone) => phone.assignment[field]));
  return [...values].filter(Boolean).sort((a, b) => a.localeCompare(b));
}

/** Says who uses a phone, and on whose network. */
export function Assign({ phone, onClose }: { phone: Phone; onClose: () => void }) {
  const queries = useQueryClient();
  const all = useQuery({ queryKey: ['phones'], queryFn: phones });
  const [said, say] = useState(phone.assignment);
  const save = useMutation({
    mutationFn: async () => {
      await assign(phone.id, said);
      const keys = [['phone', phone.id], ['phones'], ['report'], ['records']];
      await Promise.all(keys.map((queryKey) => queries.invalidateQueries({ queryKey })));
    },
    onSuccess: onClose,
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    save.mutate();
  };
  return (
    <Modal opened onClose={onClose} title={`Who uses ${phone.serial}?`}>
      <form onSubmit={submit}>
        <Stack>
          {FIELDS.map(({ field, label, description }, index) => (
            <Autocomplete
              key={field}
              label={label}
              description={description}
              data={inUse(all.data ?? [], field)}
              value={said[field]}
              onChange={(value) => say((old) => ({ ...old, [field]: value }))}
              limit={20}
              maxLength={100}
              data-autofocus={index === 0 || undefined}
            />
          ))}
          <Text size="sm" c="dimmed">
            Reports show its calls and messages under these names, those of the past too.
          </Text>
          <Failure error={save.error} />
          <Group justify="flex-end">
            <Button variant="default" onClick={onClose}>
              Cancel
            </Button>
            <Button type="submit" loading={save.isPending}>
              Save
            </Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}
