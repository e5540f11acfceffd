import { Alert, Box, Center, Loader, Text } from '@mantine/core';
import RFB from '@novnc/novnc';
import { useEffect, useRef, useState } from 'react';

interface Props {
  /** Where the screen is: RFB over a WebSocket. */
  url: string;
  /** Whether keys and touches go through. */
  live: boolean;
  label: string;
}

/** A phone's or a twin's screen in a bezel, live. */
export function Screen({ url, live, label }: Props) {
  const glass = useRef<HTMLDivElement>(null);
  const viewer = useRef<RFB | null>(null);
  const [state, setState] = useState<'connecting' | 'shown' | 'lost'>('connecting');
  const [attempt, setAttempt] = useState(0);

  useEffect(() => {
    const rfb = new RFB(glass.current!, url, { shared: true });
    rfb.scaleViewport = true;
    rfb.background = 'transparent';
    viewer.current = rfb;
    rfb.addEventListener('connect', () => setState('shown'));
    rfb.addEventListener('disconnect', () => setState('lost'));
    return () => rfb.disconnect();
  }, [url, attempt]);

  useEffect(() => {
    if (viewer.current) viewer.current.viewOnly = !live;
  }, [live, state]);

  return (
    <Box>
      <Text ta="center" size="sm" fw={600} mb={6}>
        {label}
      </Text>
      <Box
        p={10}
        bdrs={28}
        bg="dark.8"
        style={{ outline: live ? '3px solid var(--mantine-color-grape-6)' : 'none', outlineOffset: 2 }}
      >
        <Box pos="relative" w={360} h={720} style={{ overflow: 'hidden', borderRadius: 18 }} bg="dark.6">
          <Box ref={glass} w="100%" h="100%" aria-label={label} role="img" data-state={state} />
          {state === 'connecting' && (
            <Center pos="absolute" inset={0}>
              <Loader color="gray" />
            </Center>
          )}
          {state === 'lost' && (
            <Center pos="absolute" inset={0} p="md">
              <Alert color="gray" title="The screen is gone">
                <Text
                  size="sm"
                  td="underline"
                  style={{ cursor: 'pointer' }}
                  onClick={() => {
                    setState('connecting');
                    setAttempt(attempt + 1);
                  }}
                >
                  Look again
                </Text>
              </Alert>
            </Center>
          )}
        </Box>
      </Box>
    </Box>
  );
}
