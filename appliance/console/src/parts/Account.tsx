import { Avatar, Group, Menu, Modal, PasswordInput, Button, SegmentedControl, Stack, Text, UnstyledButton, useMantineColorScheme, type MantineColorScheme } from '@mantine/core';
import { notifications } from '@mantine/notifications';
import { IconLock, IconLogout } from '@tabler/icons-react';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { type FormEvent, useState } from 'react';

import { changeOwnPassword, logIn, logOut, type Me } from '../api';
import { Failure } from './Failure';
import { PASSWORD_CHARS_MIN } from './password';
import { ROLES } from './roles';

const SCHEMES = [
  { value: 'light', label: 'Light' },
  { value: 'dark', label: 'Dark' },
  { value: 'auto', label: 'As the system' },
];

/** Who is logged in, and what is theirs alone: password, colours, the way out. */
export function Account({ me }: { me: Me }) {
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  const [changing, change] = useState(false);
  const leave = useMutation({ mutationFn: logOut, onSettled: () => window.location.assign('/') });
  return (
    <>
      <Menu position="bottom-end" width={260}>
        <Menu.Target>
          <UnstyledButton aria-label={`Account of ${me.user}`}>
            <Group gap="xs">
              <Avatar size="sm" color="indigo" name={me.user} />
              <div>
                <Text size="sm" lh={1.2}>
                  {me.user}
                </Text>
                <Text size="xs" c="dimmed" lh={1.2}>
                  {ROLES[me.role].label}
                </Text>
              </div>
            </Group>
          </UnstyledButton>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Label>Colours</Menu.Label>
          <SegmentedControl
            fullWidth
            size="xs"
            aria-label="Colours"
            data={SCHEMES}
            value={colorScheme}
            onChange={(value) => setColorScheme(value as MantineColorScheme)}
          />
          <Menu.Divider />
          <Menu.Item leftSection={<IconLock size={16} />} onClick={() => change(true)}>
            Change my password
          </Menu.Item>
          <Menu.Item leftSection={<IconLogout size={16} />} onClick={() => leave.mutate()}>
            Log out
          </Menu.Item>
        </Menu.Dropdown>
      </Menu>
      {changing && <OwnPassword me={me} onClose={() => change(false)} />}
    </>
  );
}

function OwnPassword({ me, onClose }: { me: Me; onClose: () => void }) {
  const queries = useQueryClient();
  const [old, setOld] = useState('');
  const [fresh, setFresh] = useState('');
  const [again, setAgain] = useState('');
  const differ = again !== '' && again !== fresh;
  const change = useMutation({
    mutationFn: async () => {
      await changeOwnPassword(old, fresh);
      // That has ended every login of ours, this one too.
      return logIn(me.user, fresh);
    },
    onSuccess: (me) => {
      queries.setQueryData(['me'], me);
      notifications.show({ color: 'teal', message: 'Your password is changed. Your other logins have ended.' });
      onClose();
    },
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    if (fresh === again) change.mutate();
  };
  return (
    <Modal opened onClose={onClose} title="Change my password">
      <form onSubmit={submit}>
        <Stack>
          <PasswordInput
            label="Present password"
            autoComplete="current-password"
            required
            data-autofocus
            value={old}
            onChange={(e) => setOld(e.currentTarget.value)}
          />
          <PasswordInput
            label="New password"
            description={`At least ${PASSWORD_CHARS_MIN} characters`}
            autoComplete="new-password"
            required
            minLength={PASSWORD_CHARS_MIN}
            value={fresh}
            onChange={(e) => setFresh(e.currentTarget.value)}
          />
          <PasswordInput
            label="New password, again"
            autoComplete="new-password"
            required
            value={again}
            onChange={(e) => setAgain(e.currentTarget.value)}
            error={differ && 'Not the same as above'}
          />
          <Failure error={change.error} />
          <Group justify="flex-end">
            <Button variant="default" onClick={onClose}>
              Cancel
            </Button>
            <Button type="submit" loading={change.isPending} disabled={differ}>
              Change
            </Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}
