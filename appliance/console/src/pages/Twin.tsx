import { Anchor, Button, Code, Group, Loader, Paper, Stack, Text } from '@mantine/core';
import { IconCircleCheck, IconCopy, IconPlayerPause, IconPlayerPlay, IconPlayerStop } from '@tabler/icons-react';
import { useMutation, useQueryClient } from '@tanstack/react-query';
import { type ReactNode, useState } from 'react';

import { actOnTwin, endFork, forkTwin, screenAt, type Fork, type Me, type Phone } from '../api';
import { Confirm } from '../parts/Confirm';
import { Facts, twinProgress } from '../parts/Facts';
import { Failure } from '../parts/Failure';
import { Lead, leads } from '../parts/Lead';
import { Screen } from '../parts/Screen';
import { Ago } from '../parts/times';
import { count } from '../parts/units';
import classes from './Twin.module.css';

/** The twin's screen - beside the phone's own where it is a demo phone - and who leads. */
export function Twin({ phone, me }: { phone: Phone; me: Me }) {
  const running = phone.twin.state === 'running';
  const mine = leads(phone, me);
  return (
    <div className={classes.page}>
      <div className={classes.screens}>
        {phone.demo_screen && (
          <Screen label="Phone" note="A demo phone: touch it as its user would" url={screenAt(phone.id, 'demo')} live />
        )}
        <Screen label="Twin" note={<Following phone={phone} mine={mine} />} url={running ? screenAt(phone.id, 'twin') : null} live={mine} led={mine}>
          <NotRunning phone={phone} />
        </Screen>
        {phone.twin.forks.map((fork) => (
          <Forked key={fork.number} phone={phone} fork={fork} />
        ))}
      </div>
      <div className={classes.side}>
        <div className={classes.control}>
          <Lead phone={phone} me={me} />
          <Machine phone={phone} />
        </div>
        <Facts phone={phone} me={me} />
      </div>
    </div>
  );
}

/** A copy of the twin, and how to be rid of it. */
function Forked({ phone, fork }: { phone: Phone; fork: Fork }) {
  const queries = useQueryClient();
  const end = useMutation({
    mutationFn: () => endFork(phone.id, fork.number),
    onSettled: () => queries.invalidateQueries({ queryKey: ['phone', phone.id] }),
  });
  const note = (
    <Group gap={6} justify="center" component="span">
      As of event {fork.position.toLocaleString()} · stays here
      <Anchor component="button" size="xs" disabled={end.isPending} onClick={() => end.mutate()}>
        End it
      </Anchor>
      <Failure error={end.error} />
    </Group>
  );
  return <Screen label={`Copy ${fork.number}`} note={note} url={screenAt(phone.id, `twin/forks/${fork.number}`)} live />;
}

/** How the twin is doing, under its name. */
function Following({ phone, mine }: { phone: Phone; mine: boolean }) {
  const { twin, sync } = phone;
  if (twin.state !== 'running') return twinProgress(phone);
  const caughtUp = twin.position >= sync.position;
  return (
    <Group gap={4} justify="center" component="span">
      {caughtUp ? <IconCircleCheck size={14} color="var(--mantine-color-teal-6)" /> : <Loader size={12} aria-label="Catching up" />}
      {twinProgress(phone)}
      {mine && ' · your keys and touches act here'}
    </Group>
  );
}

function NotRunning({ phone }: { phone: Phone }) {
  const { twin, sync, standing } = phone;
  if (twin.state === 'starting' || twin.state === 'parking') return <Loader color="gray" aria-label={`The twin is ${twin.state}`} />;
  const hint = () => {
    if (standing === 'quarantined') return 'A phone in quarantine has no running twin.';
    if (twin.detail) return twin.detail;
    if (!sync.complete) return 'Its files are still being received; the twin starts by itself when they are here.';
    return twin.state === 'parked' ? 'It goes on where it was.' : 'Start it to see its screen.';
  };
  return (
    <Stack align="center" ta="center" p="md" gap="sm">
      <Text fw={600}>The twin is {twin.state}</Text>
      <Text size="sm">{hint()}</Text>
      {standing === 'released' && (
        <TwinButton phone={phone} act={() => actOnTwin(phone.id, 'start')} icon={<IconPlayerPlay size={16} />} label={twin.state === 'parked' ? 'Resume the twin' : 'Start the twin'} />
      )}
    </Stack>
  );
}

/** The twin's machine: how it is, and what can be done to it. */
function Machine({ phone }: { phone: Phone }) {
  const queries = useQueryClient();
  const [stopping, stop] = useState(false);
  const { twin } = phone;
  if (twin.state !== 'running' && !twin.last_end) return null;
  return (
    <Paper p="md">
      <Stack gap="sm">
        {twin.state === 'running' && (
          <>
            <Text size="sm">
              The twin started <Ago time={twin.since} />
              {twin.restarts > 0 && `, after ${count(twin.restarts, 'crash', 'crashes')}`}
            </Text>
            {twin.cpu && (
              <Text size="xs" c="dimmed">
                Runs on {twin.cpu}
              </Text>
            )}
            <Group gap="xs">
              <TwinButton phone={phone} act={() => forkTwin(phone.id, null)} icon={<IconCopy size={16} />} label="Copy" />
              <TwinButton phone={phone} act={() => actOnTwin(phone.id, 'park')} icon={<IconPlayerPause size={16} />} label="Park" />
              <Button variant="default" leftSection={<IconPlayerStop size={16} />} onClick={() => stop(true)}>
                Stop
              </Button>
            </Group>
          </>
        )}
        {twin.last_end && <LastEnd end={twin.last_end} />}
      </Stack>
      {stopping && (
        <Confirm
          title={`Stop the twin of ${phone.serial}?`}
          action="Stop the twin"
          color="red"
          onConfirm={() => actOnTwin(phone.id, 'stop').then(() => queries.invalidateQueries({ queryKey: ['phone', phone.id] }))}
          onClose={() => stop(false)}
        >
          What its programs had open is forgotten, and the next start boots anew. The phone itself and its files are untouched. To go on later
          where it is now, park it instead.
        </Confirm>
      )}
    </Paper>
  );
}

/** How the machine ended by itself, with what its guest said last, for who looks into it. */
function LastEnd({ end }: { end: NonNullable<Phone['twin']['last_end']> }) {
  return (
    <details>
      <Text component="summary" size="sm" c="dimmed" style={{ cursor: 'pointer' }}>
        It ended by itself <Ago time={end.at} />: {end.how}
      </Text>
      <Code block mt="xs" mah={200} style={{ overflow: 'auto', whiteSpace: 'pre-wrap' }} tabIndex={0}>
        {end.last_words || 'Its guest said nothing.'}
      </Code>
    </details>
  );
}

function TwinButton({ phone, act, icon, label }: { phone: Phone; act: () => Promise<unknown>; icon: ReactNode; label: string }) {
  const queries = useQueryClient();
  const action = useMutation({
    mutationFn: act,
    onSettled: () => queries.invalidateQueries({ queryKey: ['phone', phone.id] }),
  });
  return (
    <>
      <Button variant="default" leftSection={icon} loading={action.isPending} onClick={() => action.mutate()}>
        {label}
      </Button>
      <Failure error={action.error} />
    </>
  );
}
