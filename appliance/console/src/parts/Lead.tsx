import { Alert, Button, Group, Paper, Stack, Text, TextInput } from '@mantine/core';
import { notifications } from '@mantine/notifications';
import { IconHandClick, IconKeyboard } from '@tabler/icons-react';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { type FormEvent, useEffect, useState } from 'react';

import { giveLeadBack, takeLead, typeText, type Me, type Phone } from '../api';
import { Confirm } from './Confirm';
import { Failure } from './Failure';

/** How often a held lease is renewed, in ms: well within its life on the appliance. */
const RENEW_MS = 10_000;

/** Whether `me` leads the phone. */
export function leads(phone: Phone, me: Me): boolean {
  return phone.lease?.operator === me.user;
}

/** Renews the lease as long as it is ours, and says when it is no more without our having given it back. */
export function useKeptLead(phone: Phone, me: Me) {
  const queries = useQueryClient();
  const mine = leads(phone, me);
  const { mutate } = useMutation({
    mutationFn: () => takeLead(phone.id),
    onError: (error) => {
      notifications.show({ color: 'red', title: 'You do not lead any more', message: error.message });
      return queries.invalidateQueries({ queryKey: ['phone', phone.id] });
    },
  });
  useEffect(() => {
    if (!mine) return;
    const timer = setInterval(() => mutate(), RENEW_MS);
    return () => clearInterval(timer);
  }, [mine, mutate]);
}

/** Who leads, and how to take the lead and to give it back. */
export function Lead({ phone, me }: { phone: Phone; me: Me }) {
  const queries = useQueryClient();
  const [asking, ask] = useState(false);
  const refresh = () => queries.invalidateQueries({ queryKey: ['phone', phone.id] });
  const giveBack = useMutation({ mutationFn: () => giveLeadBack(phone.id), onSettled: refresh });
  const mine = leads(phone, me);
  if (phone.standing !== 'released') return null;
  if (phone.lease && !mine) {
    return (
      <Alert color="grape" icon={<IconHandClick />} title={`${phone.lease.operator} leads`}>
        You can watch. Ask them to give the lead back if you need it.
      </Alert>
    );
  }
  if (mine) {
    return (
      <Paper p="md">
        <Stack gap="sm">
          <Text fw={600}>You lead</Text>
          <Text size="sm" c="dimmed">
            Keys and touches on the twin act on the phone as well, and so do the files they change. Its user sees that help desk leads.
          </Text>
          <TypeText phone={phone} />
          <Button color="grape" variant="light" loading={giveBack.isPending} onClick={() => giveBack.mutate()}>
            Give the lead back
          </Button>
          <Failure error={giveBack.error} />
        </Stack>
      </Paper>
    );
  }
  const hindered = phone.twin.state !== 'running' ? 'Start the twin first.' : !phone.connected ? 'The phone is not connected: what you do reaches it later.' : '';
  return (
    <Paper p="md">
      <Stack gap="sm">
        <Text fw={600}>The phone leads</Text>
        <Text size="sm" c="dimmed">
          The twin follows the phone. Take the lead to act on both. {hindered}
        </Text>
        <Button color="grape" leftSection={<IconHandClick size={16} />} disabled={phone.twin.state !== 'running'} onClick={() => ask(true)}>
          Take the lead
        </Button>
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

/** For what is copied from elsewhere, or long: it is typed on the twin's keyboard, where the cursor is. */
function TypeText({ phone }: { phone: Phone }) {
  const [text, setText] = useState('');
  const type = useMutation({ mutationFn: () => typeText(phone.id, text), onSuccess: () => setText('') });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (text) type.mutate();
  };
  return (
    <form onSubmit={submit}>
      <Group gap="xs" align="flex-end" wrap="nowrap">
        <TextInput
          label="Type or paste on the phone"
          flex={1}
          autoComplete="off"
          maxLength={1000}
          value={text}
          onChange={(e) => setText(e.currentTarget.value)}
        />
        <Button type="submit" variant="default" loading={type.isPending} disabled={!text} leftSection={<IconKeyboard size={16} />}>
          Type
        </Button>
      </Group>
      <Failure error={type.error} />
    </form>
  );
}
