import { AppShell, Avatar, Burger, Group, Loader, Menu, NavLink, Text, Title, UnstyledButton } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { IconChartBar, IconDeviceMobile, IconLogout } from '@tabler/icons-react';
import { useQuery, useQueryClient } from '@tanstack/react-query';
import { Link, Navigate, Route, Routes, useLocation } from 'react-router';

import { ApiError, logOut, me, type Me } from './api';
import { useLive } from './live';
import { Login } from './pages/Login';
import { PhonePage } from './pages/Phone';
import { Phones } from './pages/Phones';
import { Reports } from './pages/Reports';
import { Failure } from './parts/Failure';

const ROLES = { admin: 'Administrator', helpdesk: 'Help desk', mai: 'Usage intelligence' };

const SECTIONS = [
  { path: '/phones', label: 'Phones', icon: IconDeviceMobile, roles: ['admin', 'helpdesk'] },
  { path: '/reports', label: 'Usage', icon: IconChartBar, roles: ['admin', 'mai'] },
];

/** Who is asking decides what there is: nobody sees the login, everybody else the sections of their role. */
export function App() {
  const queries = useQueryClient();
  const who = useQuery({ queryKey: ['me'], queryFn: me, staleTime: Infinity });
  if (who.isPending) return <Loader m="xl" />;
  if (who.error instanceof ApiError && who.error.status === 401) {
    return <Login expired={queries.getQueryData(['me']) !== undefined} />;
  }
  if (who.error) return <Failure error={who.error} />;
  return <Shell me={who.data} />;
}

function Shell({ me }: { me: Me }) {
  const [open, { toggle, close }] = useDisclosure();
  const { pathname } = useLocation();
  useLive();
  const sections = SECTIONS.filter((section) => section.roles.includes(me.role));
  return (
    <AppShell header={{ height: 56 }} navbar={{ width: 200, breakpoint: 'sm', collapsed: { mobile: !open } }} padding="lg">
      <AppShell.Header>
        <Group h="100%" px="md" justify="space-between">
          <Group gap="sm">
            <Burger opened={open} onClick={toggle} hiddenFrom="sm" size="sm" aria-label="Sections" />
            <img src="/pollux.svg" width={28} height={28} alt="" />
            <Title order={4}>Pollux</Title>
          </Group>
          <User me={me} />
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="sm">
        {sections.map(({ path, label, icon: Icon }) => (
          <NavLink
            key={path}
            component={Link}
            to={path}
            label={label}
            leftSection={<Icon size={18} />}
            active={pathname.startsWith(path)}
            onClick={close}
          />
        ))}
      </AppShell.Navbar>
      <AppShell.Main>
        <Routes>
          <Route path="/phones" element={<Phones me={me} />} />
          <Route path="/phones/:id" element={<PhonePage me={me} />} />
          <Route path="/reports" element={<Reports />} />
          <Route path="*" element={<Navigate to={sections[0]?.path ?? '/'} replace />} />
        </Routes>
      </AppShell.Main>
    </AppShell>
  );
}

function User({ me }: { me: Me }) {
  const queries = useQueryClient();
  const leave = async () => {
    await logOut();
    queries.clear();
    window.location.assign('/');
  };
  return (
    <Menu position="bottom-end">
      <Menu.Target>
        <UnstyledButton aria-label={`Logged in as ${me.user}`}>
          <Group gap="xs">
            <Avatar size="sm" color="indigo" name={me.user} />
            <div>
              <Text size="sm" lh={1.2}>
                {me.user}
              </Text>
              <Text size="xs" c="dimmed" lh={1.2}>
                {ROLES[me.role]}
              </Text>
            </div>
          </Group>
        </UnstyledButton>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.Item leftSection={<IconLogout size={16} />} onClick={leave}>
          Log out
        </Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}
