import { Box, Button, Center, Loader, Stack, Text } from '@mantine/core';
import RFB from '@novnc/novnc';
import { type ReactNode, useEffect, useRef, useState } from 'react';

import classes from './Screen.module.css';

/** Before a screen that was lost is looked for again, in ms: the wait doubles each time. */
const RETRY_MS = 1_000;
/** After so many tries in vain a person is asked. */
const RETRIES_MAX = 5;

interface Props {
  label: string;
  /** Under the label: what this screen is, or how it is doing. */
  note?: ReactNode;
  /** Where the screen is: RFB over a WebSocket. Without it, `children` are shown in its place. */
  url: string | null;
  /** Whether keys and touches go through. */
  live: boolean;
  /** The operator's hand is on it. */
  led?: boolean;
  children?: ReactNode;
}

/** A phone's or a twin's screen in a bezel. */
export function Screen({ label, note, url, live, led, children }: Props) {
  return (
    <div className={classes.screen}>
      <div className={classes.caption}>
        <Text fw={600}>{label}</Text>
        <Text component="div" size="xs" c="dimmed">
          {note}
        </Text>
      </div>
      <div className={classes.bezel} data-led={led || undefined}>
        {url ? <Glass key={url} url={url} live={live} led={!!led} label={label} /> : <Center className={classes.dark}>{children}</Center>}
      </div>
    </div>
  );
}

function Glass({ url, live, led, label }: { url: string; live: boolean; led: boolean; label: string }) {
  const glass = useRef<HTMLDivElement>(null);
  const viewer = useRef<RFB | null>(null);
  const [state, setState] = useState<'connecting' | 'shown' | 'lost'>('connecting');
  const [tries, setTries] = useState({ since: 0, all: 0 });
  const again = () => setTries(({ since, all }) => ({ since: since + 1, all: all + 1 }));

  useEffect(() => {
    setState('connecting');
    const rfb = new RFB(glass.current!, url, { shared: true });
    rfb.scaleViewport = true;
    rfb.background = 'transparent';
    viewer.current = rfb;
    rfb.addEventListener('connect', () => {
      setState('shown');
      setTries(({ all }) => ({ since: 0, all }));
    });
    rfb.addEventListener('disconnect', () => setState('lost'));
    return () => rfb.disconnect();
  }, [url, tries.all]);

  useEffect(() => {
    if (state !== 'lost' || tries.since >= RETRIES_MAX) return;
    const timer = setTimeout(again, RETRY_MS * 2 ** tries.since);
    return () => clearTimeout(timer);
  }, [state, tries.since]);

  useEffect(() => {
    if (viewer.current) viewer.current.viewOnly = !live;
  }, [live, state]);

  // Who has just taken the lead wants to type.
  useEffect(() => {
    if (led && state === 'shown') viewer.current?.focus();
  }, [led, state]);

  return (
    <Box className={classes.dark}>
      <div ref={glass} className={classes.glass} aria-label={label} role={live ? 'application' : 'img'} data-state={state} />
      {state === 'connecting' && (
        <Center pos="absolute" inset={0}>
          <Loader color="gray" aria-label="Connecting to the screen" />
        </Center>
      )}
      {state === 'lost' && (
        <Center pos="absolute" inset={0} p="md">
          <Stack align="center" c="gray.3">
            <Text size="sm">The screen is out of reach.</Text>
            <Button size="xs" variant="default" onClick={again}>
              Look again
            </Button>
          </Stack>
        </Center>
      )}
    </Box>
  );
}
