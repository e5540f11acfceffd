import { ActionIcon, Anchor, Badge, Button, Center, Group, Loader, Paper, SegmentedControl, Stack, Table, Text, TextInput, Tooltip } from '@mantine/core';
import { IconHistory, IconListDetails, IconSearch } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { memo, useEffect, useRef, useState } from 'react';
import { Link, useSearchParams } from 'react-router';

import { log, type LogEvent, type Phone } from '../api';
import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { At } from '../parts/times';
import classes from './Log.module.css';

/** Events on one page. */
const PAGE_EVENTS = 300;

const KINDS: Record<LogEvent['kind'], { label: string; badge: string; color: string }> = {
  mmi: { label: 'Keys and touches', badge: 'input', color: 'blue' },
  file: { label: 'Files', badge: 'file', color: 'teal' },
  control: { label: 'Agent', badge: 'agent', color: 'gray' },
  stack: { label: 'Calls and network', badge: 'modem', color: 'orange' },
  command: { label: 'Commands', badge: 'command', color: 'grape' },
  outcome: { label: 'Outcomes', badge: 'outcome', color: 'grape' },
};

/** The last event of the page that has `at` in its middle. */
export function pageAround(at: number): number {
  return Math.max(at + PAGE_EVENTS / 2, PAGE_EVENTS);
}

/** A phone's log, newest first: its end, growing as the phone is used, or any page before. `?at=` asks for one event. */
export function Log({ phone }: { phone: Phone }) {
  const [parameters, setParameters] = useSearchParams();
  const at = parameters.has('at') ? Number(parameters.get('at')) : null;
  const [end, setEnd] = useState(at === null ? null : pageAround(at));
  const [kind, setKind] = useState<'all' | LogEvent['kind']>('all');
  const [words, setWords] = useState('');
  const page = useQuery({
    queryKey: ['log', phone.id, end],
    queryFn: () => log(phone.id, end === null ? null : end - PAGE_EVENTS, PAGE_EVENTS),
    placeholderData: (old) => old,
  });
  // What came since this page was opened is pointed out.
  const known = useRef<number | null>(null);
  known.current ??= page.data?.last ?? null;
  if (page.isPending) {
    return (
      <Center p="xl">
        <Loader aria-label="Loading the log" />
      </Center>
    );
  }
  if (!page.data) return <Failure error={page.error} retry={page.refetch} />;
  const { events, last } = page.data;
  const [first, latest] = [events.at(0)?.position ?? 0, events.at(-1)?.position ?? 0];
  const wanted = words.toLowerCase();
  const shown = events.filter((event) => (kind === 'all' || event.kind === kind) && event.summary.toLowerCase().includes(wanted)).reverse();
  const follow = () => {
    setParameters({}, { replace: true });
    setEnd(null);
  };
  return (
    <Stack gap="sm">
      <Group>
        <SegmentedControl
          aria-label="Which events"
          value={kind}
          onChange={(value) => setKind(value as typeof kind)}
          data={[{ value: 'all', label: 'All' }, ...Object.entries(KINDS).map(([value, { label }]) => ({ value, label }))]}
        />
        <TextInput
          aria-label="Search these events"
          placeholder="Search these events"
          leftSection={<IconSearch size={16} />}
          value={words}
          onChange={(e) => setWords(e.currentTarget.value)}
          flex={1}
          miw={200}
          maw={320}
        />
      </Group>
      <Pages first={first} latest={latest} last={last} shown={shown.length} onEnd={setEnd} onFollow={follow} following={end === null} />
      {last === 0 && (
        <Empty icon={IconListDetails} title="Nothing has happened yet">
          Events appear here as soon as the phone is released, connected, and used.
        </Empty>
      )}
      {last > 0 && shown.length === 0 && <Empty icon={IconListDetails} title="None of these events is like that" />}
      {shown.length > 0 && (
        <Paper>
          <Table.ScrollContainer minWidth={600} type="native">
            <Table verticalSpacing={4} aria-label="Log">
              <Table.Thead>
                <Table.Tr>
                  <Table.Th ta="right" w={80}>
                    Event
                  </Table.Th>
                  <Table.Th w={130}>Phone’s clock</Table.Th>
                  <Table.Th w={110}>Kind</Table.Th>
                  <Table.Th>What happened</Table.Th>
                  <Table.Th w={50} />
                </Table.Tr>
              </Table.Thead>
              <Table.Tbody>
                {shown.map((event) => (
                  <Row key={event.position} phone={phone.id} event={event} wanted={event.position === at} fresh={known.current !== null && event.position > known.current} />
                ))}
              </Table.Tbody>
            </Table>
          </Table.ScrollContainer>
        </Paper>
      )}
    </Stack>
  );
}

interface PagesProps {
  first: number;
  latest: number;
  last: number;
  shown: number;
  following: boolean;
  onEnd: (end: number) => void;
  onFollow: () => void;
}

function Pages({ first, latest, last, shown, following, onEnd, onFollow }: PagesProps) {
  if (last === 0) return null;
  return (
    <Group justify="space-between">
      <Text size="sm" c="dimmed" role="status">
        {`Events ${first.toLocaleString()} to ${latest.toLocaleString()} of ${last.toLocaleString()}`}
        {shown < latest - first + 1 && `, ${shown.toLocaleString()} of them shown`}
        {following && ' · grows as the phone is used'}
      </Text>
      <Group gap="xs">
        <Button size="xs" variant="default" disabled={first <= 1} onClick={() => onEnd(Math.max(first - 1, PAGE_EVENTS))}>
          Older
        </Button>
        <Button size="xs" variant="default" disabled={latest >= last} onClick={() => onEnd(latest + PAGE_EVENTS)}>
          Newer
        </Button>
        <Button size="xs" variant="default" disabled={following} onClick={onFollow}>
          Newest
        </Button>
      </Group>
    </Group>
  );
}

const Row = memo(function Row({ phone, event, wanted, fresh }: { phone: string; event: LogEvent; wanted: boolean; fresh: boolean }) {
  const row = useRef<HTMLTableRowElement>(null);
  useEffect(() => {
    if (wanted) row.current?.scrollIntoView({ block: 'center' });
  }, [wanted]);
  const { badge, color } = KINDS[event.kind];
  return (
    <Table.Tr ref={row} {...(wanted && { 'aria-current': true })} className={wanted ? classes.wanted : fresh ? classes.fresh : undefined}>
      <Table.Td ta="right">
        <Anchor component={Link} to={`/phones/${phone}/log?at=${event.position}`} c="dimmed" size="sm" title="Link to this event">
          {event.position.toLocaleString()}
        </Anchor>
      </Table.Td>
      <Table.Td style={{ whiteSpace: 'nowrap' }}>
        <At time={event.at} />
      </Table.Td>
      <Table.Td>
        <Badge size="sm" variant="light" color={event.origin === 'helpdesk' ? 'grape' : color}>
          {event.origin === 'helpdesk' ? 'help desk' : badge}
        </Badge>
      </Table.Td>
      <Table.Td style={{ wordBreak: 'break-word' }}>{event.summary}</Table.Td>
      <Table.Td>
        {event.kind === 'file' && (
          <Tooltip label="Files as they were then">
            <ActionIcon component={Link} to={`/phones/${phone}/files?at=${event.position}`} size="xs" variant="subtle" color="gray" aria-label={`Files as of event ${event.position}`}>
              <IconHistory size={16} />
            </ActionIcon>
          </Tooltip>
        )}
      </Table.Td>
    </Table.Tr>
  );
});
