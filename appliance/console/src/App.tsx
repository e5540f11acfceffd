import { Alert, AppShell, Burger, Center, Group, Loader, NavLink, Title, Tooltip } from '@mantine/core';
import { useDisclosure } from '@mantine/hooks';
import { IconAlertTriangle, IconChartBar, IconDeviceMobile, IconFileSearch, IconKey, IconPlugConnectedX, IconUsers } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { lazy, Suspense } from 'react';
import { Link, Navigate, Route, Routes, useLocation } from 'react-router';

import { ApiError, me, status, type Me, type Role } from './api';
import classes from './App.module.css';
import { useLive } from './live';
import { Login } from './pages/Login';
import { Phones } from './pages/Phones';
import { Account } from './parts/Account';
import { Failure, sentence } from './parts/Failure';

// What draws screens and charts is large, and not everybody's.
const PhonePage = lazy(() => import('./pages/Phone'));
const Usage = lazy(() => import('./usage/Usage'));
const Find = lazy(() => import('./pages/Find'));
const Enrolment = lazy(() => import('./pages/Enrolment'));
const Users = lazy(() => import('./pages/Users'));

/** How often it is asked whether the appliance is well, in ms: nothing tells. */
const HEALTH_MS = 30_000;

/** What there is, and for whom. */
const SECTIONS: { path: string; label: string; icon: typeof IconKey; roles: Role[] }[] = [
  { path: '/phones', label: 'Phones', icon: IconDeviceMobile, roles: ['admin', 'helpdesk'] },
  { path: '/find', label: 'Find', icon: IconFileSearch, roles: ['admin', 'helpdesk'] },
  { path: '/usage', label: 'Usage', icon: IconChartBar, roles: ['admin', 'mai'] },
  { path: '/enrolment', label: 'Enrolment', icon: IconKey, roles: ['admin'] },
  { path: '/users', label: 'Users', icon: IconUsers, roles: ['admin'] },
];

/** Who is asking decides what there is: nobody sees the login, everybody else the sections of their role. */
export function App() {
  const who = useQuery({ queryKey: ['me'], queryFn: me, staleTime: Infinity });
  if (who.isPending) return <Waiting />;
  if (who.error instanceof ApiError && who.error.status === 401) return <Login expired={who.data !== undefined} />;
  if (who.data) return <Shell me={who.data} />;
  return (
    <Center mih="100vh">
      <Failure error={who.error} retry={who.refetch} />
    </Center>
  );
}

function Shell({ me }: { me: Me }) {
  const [open, { toggle, close }] = useDisclosure();
  const { pathname } = useLocation();
  const heard = useLive();
  const sections = SECTIONS.filter((section) => section.roles.includes(me.role));
  const may = (path: string) => sections.some((section) => section.path === path);
  return (
    <AppShell
      header={{ height: 56 }}
      navbar={{ width: { base: 200, sm: 68, lg: 200 }, breakpoint: 'sm', collapsed: { mobile: !open } }}
      padding="lg"
    >
      <AppShell.Header>
        <Group h="100%" px="md" justify="space-between">
          <Group gap="sm">
            <Burger opened={open} onClick={toggle} hiddenFrom="sm" size="sm" aria-label="Sections" />
            <img src="/pollux.svg" width={28} height={28} alt="" />
            <Title order={4} component="p">
              Pollux
            </Title>
          </Group>
          <Account me={me} />
        </Group>
      </AppShell.Header>
      <AppShell.Navbar p="sm" aria-label="Sections">
        {sections.map(({ path, label, icon: Icon }) => (
          <Tooltip key={path} label={label} position="right" classNames={{ tooltip: classes.onRail }}>
            <NavLink
              component={Link}
              to={path}
              label={label}
              aria-label={label}
              leftSection={<Icon size={20} />}
              classNames={{ root: classes.link, body: classes.besideRail }}
              active={pathname.startsWith(path)}
              {...(pathname.startsWith(path) && { 'aria-current': 'page' })}
              onClick={close}
            />
          </Tooltip>
        ))}
      </AppShell.Navbar>
      <AppShell.Main className={classes.main}>
        <Health />
        {!heard && (
          <Alert color="yellow" icon={<IconPlugConnectedX />} mb="md" role="status">
            The appliance cannot be heard just now, so what you see may be old. It is tried again by itself.
          </Alert>
        )}
        <Suspense fallback={<Waiting />}>
          <Routes>
            {may('/phones') && <Route path="/phones" element={<Phones me={me} />} />}
            {may('/phones') && <Route path="/phones/:id/:tab?" element={<PhonePage me={me} />} />}
            {may('/find') && <Route path="/find" element={<Find />} />}
            {may('/usage') && <Route path="/usage" element={<Usage me={me} />} />}
            {may('/enrolment') && <Route path="/enrolment" element={<Enrolment />} />}
            {may('/users') && <Route path="/users" element={<Users me={me} />} />}
            <Route path="*" element={<Navigate to={sections[0]?.path ?? '/'} replace />} />
          </Routes>
        </Suspense>
      </AppShell.Main>
    </AppShell>
  );
}

/** Says when the appliance itself is in trouble, such as a full disk. */
function Health() {
  const appliance = useQuery({ queryKey: ['status'], queryFn: status, refetchInterval: HEALTH_MS });
  if (!appliance.data?.trouble) return null;
  return (
    <Alert color="red" icon={<IconAlertTriangle />} mb="md" role="alert" title="Nothing is accepted from phones">
      {sentence(appliance.data.trouble)} The phones keep what happens on them, and send it when this is mended.
    </Alert>
  );
}

function Waiting() {
  return (
    <Center p="xl">
      <Loader aria-label="Loading" />
    </Center>
  );
}
