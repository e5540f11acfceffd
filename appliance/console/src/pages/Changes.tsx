import { Alert, Badge, Center, Group, Loader, Text } from '@mantine/core';
import { IconArrowsDiff } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';

import { diff, type Change, type Phone } from '../api';
import { DataTable, type Column } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { readable } from '../parts/paths';
import { Preview, PREVIEW_BYTES_MAX } from '../parts/Preview';
import { permissions, size } from '../parts/units';

const KINDS: Record<Change['change'], { label: string; color: string }> = {
  added: { label: 'new', color: 'teal' },
  removed: { label: 'removed', color: 'red' },
  changed: { label: 'changed', color: 'blue' },
  moved: { label: 'moved', color: 'grape' },
};

/** What is not the same in a phone's files at two positions of its log. */
export function Changes({ phone, from, to }: { phone: Phone; from: number; to: number }) {
  const [shown, show] = useState<{ path: string; position: number } | null>(null);
  const found = useQuery({ queryKey: ['diff', phone.id, from, to], queryFn: () => diff(phone.id, from, to), placeholderData: (old) => old });
  if (found.isPending) {
    return (
      <Center p="xl">
        <Loader aria-label="Loading changes" />
      </Center>
    );
  }
  if (!found.data) return <Failure error={found.error} retry={found.refetch} />;
  const { changes, more } = found.data;
  // What is gone is looked at as it was.
  const open = (change: Change) => {
    const [state, position] = change.after ? [change.after, to] : [change.before, from];
    if (state?.kind === 'file' && state.size <= PREVIEW_BYTES_MAX) show({ path: change.path, position });
  };
  if (changes.length === 0) return <Empty icon={IconArrowsDiff} title="No file changed between these" />;
  return (
    <>
      {more && <Alert color="yellow">There are more changes than are shown here. Choose two moments that are closer.</Alert>}
      <DataTable label="What changed" noun="change" rows={changes} columns={COLUMNS} rowKey={(change) => change.path} onRow={open} />
      {shown !== null && <Preview phone={phone} path={shown.path} position={shown.position} onClose={() => show(null)} />}
    </>
  );
}

const COLUMNS: Column<Change>[] = [
  {
    label: 'Change',
    width: 110,
    sort: (change) => change.change,
    show: ({ change }) => (
      <Badge size="sm" variant="light" color={KINDS[change].color}>
        {KINDS[change].label}
      </Badge>
    ),
  },
  {
    label: 'Path',
    sort: (change) => change.path,
    show: ({ path, moved_from }) => (
      <Text size="sm" style={{ wordBreak: 'break-all' }}>
        {readable(path)}
        {moved_from !== null && (
          <Text span inherit c="dimmed">
            {' '}
            from {readable(moved_from)}
          </Text>
        )}
      </Text>
    ),
  },
  { label: 'How', width: 240, show: (change) => <How change={change} /> },
];

/** What is different, in words: size, rights, owner, or contents alone. */
export function how({ before, after }: Change): string {
  const one = before ?? after;
  if (!one) return '';
  if (!before || !after) return one.kind === 'file' ? size(one.size) : one.kind;
  const parts = [
    before.kind !== after.kind && `${before.kind} → ${after.kind}`,
    after.kind === 'file' && before.size !== after.size && `${size(before.size)} → ${size(after.size)}`,
    before.mode !== after.mode && `${permissions(before.mode)} → ${permissions(after.mode)}`,
    (before.uid !== after.uid || before.gid !== after.gid) && `owner ${before.uid}:${before.gid} → ${after.uid}:${after.gid}`,
  ].filter((part) => typeof part === 'string');
  return parts.join(', ');
}

function How({ change }: { change: Change }) {
  const told = how(change);
  return (
    <Group gap="xs">
      <Text size="sm" c="dimmed">
        {told || (change.change === 'moved' ? 'only its place' : 'its contents')}
      </Text>
    </Group>
  );
}
