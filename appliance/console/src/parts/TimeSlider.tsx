import { Group, Paper, RangeSlider, Slider, Stack, Switch, Text } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useEffect, useState } from 'react';

import { log, type Phone } from '../api';
import { At } from './times';

interface Props {
  phone: Phone;
  /** Of the log; null is now. */
  at: number | null;
  /** What `at` is compared with; null: nothing. */
  since: number | null;
  onChange: (at: number | null, since: number | null) => void;
}

/** Any moment of a phone's log, or two to compare. The rightmost is now, and stays now as the log grows; of two it is the moment it was. */
export function TimeSlider({ phone, at, since, onChange }: Props) {
  const last = phone.sync.position;
  const now = at ?? last;
  // Where the hand is, until it lets go.
  const [held, hold] = useState<[number, number]>([since ?? 0, now]);
  useEffect(() => hold([since ?? 0, now]), [since, now]);
  if (last === 0) return null;
  const asked = (position: number) => (position >= last ? null : position);
  const label = (position: number) => (position >= last ? 'now' : `event ${position.toLocaleString()}`);
  return (
    <Paper p="md">
      <Stack gap="xs">
        <Group justify="space-between">
          <Text size="sm" component="div">
            {since !== null && (
              <>
                From <Moment phone={phone} position={held[0]} last={last} /> to{' '}
              </>
            )}
            <Moment phone={phone} position={held[1]} last={last} />
          </Text>
          <Switch
            size="xs"
            label="Show what changed"
            checked={since !== null}
            onChange={(event) => (event.currentTarget.checked ? onChange(now, Math.max(now - 1, 0)) : onChange(asked(now), null))}
          />
        </Group>
        {since === null ? (
          <Slider
            min={0}
            max={last}
            value={held[1]}
            label={label}
            thumbLabel="Files as of"
            onChange={(position) => hold([held[0], position])}
            onChangeEnd={(position) => onChange(asked(position), null)}
          />
        ) : (
          <RangeSlider
            min={0}
            max={last}
            minRange={0}
            value={held}
            label={label}
            thumbFromLabel="Changes since"
            thumbToLabel="Changes until"
            onChange={hold}
            onChangeEnd={([from, to]) => onChange(to, from)}
          />
        )}
      </Stack>
    </Paper>
  );
}

/** A position of the log in people's time. */
function Moment({ phone, position, last }: { phone: Phone; position: number; last: number }) {
  const event = useQuery({
    queryKey: ['moment', phone.id, position],
    queryFn: () => log(phone.id, position - 1, 1).then((page) => page.events[0] ?? null),
    enabled: position > 0 && position < last,
    // What is in the log stays as it is.
    staleTime: Infinity,
    placeholderData: (old) => old,
  });
  if (position >= last) return <>now</>;
  if (position === 0) return <>before anything happened</>;
  return (
    <>
      event {position.toLocaleString()}
      {event.data && (
        <>
          {' '}
          (<At time={event.data.at} />)
        </>
      )}
    </>
  );
}
