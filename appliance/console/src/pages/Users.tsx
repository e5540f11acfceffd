import { ActionIcon, Badge, Button, Group, Loader, Menu, Modal, PasswordInput, Radio, Stack, Text, TextInput, Title, Alert } from '@mantine/core';
import { IconDots, IconLock, IconTrash, IconUserPlus, IconUserShield } from '@tabler/icons-react';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { type FormEvent, useState } from 'react';

import { addUser, changeUser, removeUser, users, type Me, type Role, type User } from '../api';
import { Confirm } from '../parts/Confirm';
import { Copyable } from '../parts/Copyable';
import { DataTable, type Column } from '../parts/DataTable';
import { Failure } from '../parts/Failure';
import { newPassword, PASSWORD_CHARS_MIN } from '../parts/password';
import { ROLES } from '../parts/roles';
import { Ago } from '../parts/times';

type Asked = { what: 'add' } | { what: 'role' | 'password' | 'remove'; user: User };

/** The people who may log in. */
export default function Users({ me }: { me: Me }) {
  const queries = useQueryClient();
  const all = useQuery({ queryKey: ['users'], queryFn: users });
  const [asked, ask] = useState<Asked | null>(null);
  const close = () => ask(null);
  const refresh = () => queries.invalidateQueries({ queryKey: ['users'] });
  const columns: Column<User>[] = [
    {
      label: 'Name',
      sort: (user) => user.name,
      show: (user) => (
        <Text span fw={600} size="sm">
          {user.name}
          {user.name === me.user && (
            <Text span inherit fw={400} c="dimmed">
              {' '}
              (you)
            </Text>
          )}
        </Text>
      ),
    },
    {
      label: 'Role',
      sort: (user) => ROLES[user.role].label,
      show: (user) => (
        <Badge variant="light" color={ROLES[user.role].color}>
          {ROLES[user.role].label}
        </Badge>
      ),
    },
    { label: 'May', show: (user) => ROLES[user.role].about },
    { label: 'Added', sort: (user) => user.created_at, show: (user) => <Ago time={user.created_at} /> },
    { label: '', align: 'right', show: (user) => <Actions user={user} own={user.name === me.user} ask={ask} /> },
  ];
  return (
    <Stack gap="lg">
      <title>Users · Pollux</title>
      <Group justify="space-between">
        <Title order={1} fz="h2">
          Users
        </Title>
        <Button leftSection={<IconUserPlus size={16} />} onClick={() => ask({ what: 'add' })}>
          Add a user
        </Button>
      </Group>
      {all.isPending && <Loader aria-label="Loading users" />}
      <Failure error={all.error} retry={all.refetch} />
      {all.data && <DataTable label="Users" noun="user" rows={all.data} columns={columns} rowKey={(user) => user.name} />}
      {asked?.what === 'add' && <Add onAdded={refresh} onClose={close} />}
      {asked?.what === 'role' && <ChangeRole user={asked.user} onChanged={refresh} onClose={close} />}
      {asked?.what === 'password' && <ResetPassword user={asked.user} onClose={close} />}
      {asked?.what === 'remove' && (
        <Confirm
          title={`Remove ${asked.user.name}?`}
          action="Remove"
          color="red"
          onConfirm={() => removeUser(asked.user.name).then(refresh)}
          onClose={close}
        >
          {asked.user.name} is logged out at once and cannot log in again. What they did stays in the phones’ logs.
        </Confirm>
      )}
    </Stack>
  );
}

/** What can be done to a user; of oneself an administrator changes only the password, so that nobody locks themselves out. */
function Actions({ user, own, ask }: { user: User; own: boolean; ask: (asked: Asked) => void }) {
  if (own) {
    return (
      <Text size="xs" c="dimmed">
        Change your password in the menu at the top
      </Text>
    );
  }
  return (
    <Menu position="bottom-end">
      <Menu.Target>
        <ActionIcon variant="subtle" color="gray" aria-label={`Actions for ${user.name}`}>
          <IconDots size={16} />
        </ActionIcon>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.Item leftSection={<IconUserShield size={16} />} onClick={() => ask({ what: 'role', user })}>
          Change role
        </Menu.Item>
        <Menu.Item leftSection={<IconLock size={16} />} onClick={() => ask({ what: 'password', user })}>
          Reset password
        </Menu.Item>
        <Menu.Item color="red" leftSection={<IconTrash size={16} />} onClick={() => ask({ what: 'remove', user })}>
          Remove
        </Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}

function Add({ onAdded, onClose }: { onAdded: () => void; onClose: () => void }) {
  const [name, setName] = useState('');
  const [role, setRole] = useState<Role>('helpdesk');
  const [chosen, choose] = useState<string | null>(null);
  const add = useMutation({
    mutationFn: async () => {
      const password = chosen ?? newPassword();
      await addUser(name, role, password);
      return password;
    },
    onSuccess: onAdded,
  });
  if (add.data) return <Told title={`${name} is added`} name={name} password={add.data} onClose={onClose} />;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    add.mutate();
  };
  return (
    <Modal opened onClose={onClose} title="Add a user">
      <form onSubmit={submit}>
        <Stack>
          <TextInput
            label="Name"
            description="What they log in with: lower-case letters, digits, dots, dashes"
            required
            data-autofocus
            autoComplete="off"
            maxLength={64}
            value={name}
            onChange={(e) => setName(e.currentTarget.value.toLowerCase())}
          />
          <RoleChoice role={role} setRole={setRole} />
          <PasswordChoice chosen={chosen} choose={choose} />
          <Failure error={add.error} />
          <Buttons action="Add" busy={add.isPending} onClose={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}

function ChangeRole({ user, onChanged, onClose }: { user: User; onChanged: () => Promise<unknown>; onClose: () => void }) {
  const [role, setRole] = useState(user.role);
  const change = useMutation({ mutationFn: () => changeUser(user.name, { role }).then(onChanged), onSuccess: onClose });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    change.mutate();
  };
  return (
    <Modal opened onClose={onClose} title={`Role of ${user.name}`}>
      <form onSubmit={submit}>
        <Stack>
          <RoleChoice role={role} setRole={setRole} />
          <Text size="sm" c="dimmed">
            {user.name} is logged out and has the new role with the next login.
          </Text>
          <Failure error={change.error} />
          <Buttons action="Change role" busy={change.isPending} onClose={onClose} disabled={role === user.role} />
        </Stack>
      </form>
    </Modal>
  );
}

function ResetPassword({ user, onClose }: { user: User; onClose: () => void }) {
  const [chosen, choose] = useState<string | null>(null);
  const reset = useMutation({
    mutationFn: async () => {
      const password = chosen ?? newPassword();
      await changeUser(user.name, { password });
      return password;
    },
  });
  if (reset.data) return <Told title={`${user.name} has a new password`} name={user.name} password={reset.data} onClose={onClose} />;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    reset.mutate();
  };
  return (
    <Modal opened onClose={onClose} title={`Reset the password of ${user.name}`}>
      <form onSubmit={submit}>
        <Stack>
          <Text size="sm">The present password ends to work, and {user.name} is logged out everywhere.</Text>
          <PasswordChoice chosen={chosen} choose={choose} />
          <Failure error={reset.error} />
          <Buttons action="Reset password" busy={reset.isPending} onClose={onClose} />
        </Stack>
      </form>
    </Modal>
  );
}

function RoleChoice({ role, setRole }: { role: Role; setRole: (role: Role) => void }) {
  return (
    <Radio.Group label="Role" value={role} onChange={(value) => setRole(value as Role)}>
      <Stack gap="xs" mt={4}>
        {Object.entries(ROLES).map(([value, { label, about }]) => (
          <Radio key={value} value={value} label={label} description={about} />
        ))}
      </Stack>
    </Radio.Group>
  );
}

/** `chosen` is null while the password is to be made up by us. */
function PasswordChoice({ chosen, choose }: { chosen: string | null; choose: (password: string | null) => void }) {
  return (
    <>
      <Radio.Group label="Password" value={chosen === null ? 'made' : 'chosen'} onChange={(value) => choose(value === 'made' ? null : '')}>
        <Group mt={4}>
          <Radio value="made" label="Make one up" />
          <Radio value="chosen" label="I choose it" />
        </Group>
      </Radio.Group>
      {chosen !== null && (
        <PasswordInput
          label="The password"
          description={`At least ${PASSWORD_CHARS_MIN} characters`}
          autoComplete="new-password"
          required
          minLength={PASSWORD_CHARS_MIN}
          value={chosen}
          onChange={(e) => choose(e.currentTarget.value)}
        />
      )}
    </>
  );
}

function Buttons({ action, busy, disabled, onClose }: { action: string; busy: boolean; disabled?: boolean; onClose: () => void }) {
  return (
    <Group justify="flex-end">
      <Button variant="default" onClick={onClose}>
        Cancel
      </Button>
      <Button type="submit" loading={busy} disabled={disabled}>
        {action}
      </Button>
    </Group>
  );
}

/** A password that is shown once. A stray click beside it does not close it. */
function Told({ title, name, password, onClose }: { title: string; name: string; password: string; onClose: () => void }) {
  return (
    <Modal opened onClose={onClose} title={title} closeOnClickOutside={false}>
      <Stack>
        <Alert color="teal">The password is shown once. Give it to {name} in a safe way; they can change it after logging in.</Alert>
        <Copyable label="Password" text={password} />
        <Group justify="flex-end">
          <Button onClick={onClose}>Done</Button>
        </Group>
      </Stack>
    </Modal>
  );
}
