import { Alert, Button, Center, Group, Paper, PasswordInput, Stack, Text, TextInput, Title } from '@mantine/core';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { type FormEvent, useState } from 'react';

import { logIn } from '../api';
import { Failure } from '../parts/Failure';

/** Asks for name and password; `expired` says why somebody who had been in is asked again. */
export function Login({ expired }: { expired: boolean }) {
  const queries = useQueryClient();
  const [user, setUser] = useState('');
  const [password, setPassword] = useState('');
  const login = useMutation({
    mutationFn: () => logIn(user, password),
    onSuccess: (me) => {
      // What somebody else has seen is not for this one.
      queries.removeQueries({ predicate: (query) => query.queryKey[0] !== 'me' });
      queries.setQueryData(['me'], me);
    },
  });
  const submit = (event: FormEvent) => {
    event.preventDefault();
    login.mutate();
  };
  return (
    <Center mih="100vh" p="md" component="main" bg="light-dark(var(--mantine-color-gray-0), var(--mantine-color-dark-8))">
      <title>Log in · Pollux</title>
      <Paper shadow="sm" p="xl" w={400}>
        <form onSubmit={submit}>
          <Stack>
            <Group gap="sm">
              <img src="/pollux.svg" width={40} height={40} alt="" />
              <div>
                <Title order={1} fz="h2" lh={1.1}>
                  Pollux
                </Title>
                <Text size="sm" c="dimmed">
                  Living twins of your phones
                </Text>
              </div>
            </Group>
            {expired && !login.isError && <Alert color="yellow">Your login has ended. Log in again to go on where you were.</Alert>}
            <TextInput
              label="User"
              value={user}
              onChange={(e) => setUser(e.currentTarget.value)}
              autoComplete="username"
              autoFocus
              required
            />
            <PasswordInput
              label="Password"
              value={password}
              onChange={(e) => setPassword(e.currentTarget.value)}
              autoComplete="current-password"
              required
            />
            <Failure error={login.error} />
            <Button type="submit" loading={login.isPending}>
              Log in
            </Button>
          </Stack>
        </form>
      </Paper>
    </Center>
  );
}
