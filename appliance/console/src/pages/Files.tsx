import { ActionIcon, Alert, Anchor, Breadcrumbs, Center, Group, Loader, Stack, Text, Tooltip } from '@mantine/core';
import { IconDownload, IconFile, IconFolder, IconFolderOpen, IconHistory, IconLink } from '@tabler/icons-react';
import { useMutation, useQuery } from '@tanstack/react-query';
import { useState } from 'react';
import { useNavigate, useSearchParams } from 'react-router';

import { fileAt, files, forkTwin, type FileEntry, type Phone } from '../api';
import { DataTable, type Column } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { readable } from '../parts/paths';
import { Preview, PREVIEW_BYTES_MAX } from '../parts/Preview';
import { Ago } from '../parts/times';
import { TimeSlider } from '../parts/TimeSlider';
import { permissions, size } from '../parts/units';
import { Changes } from './Changes';

/** The phone's files as its twin has them, now or as of a position of the log (`?at=`), or what changed in them (`?since=`). */
export function Files({ phone }: { phone: Phone }) {
  const [parameters, setParameters] = useSearchParams();
  const number = (name: string) => (parameters.has(name) ? Number(parameters.get(name)) : null);
  const [at, since] = [number('at'), number('since')];
  const turn = (to: number | null, from: number | null) => {
    const path = parameters.get('path');
    const kept = { ...(path !== null && { path }), ...(to !== null && { at: String(to) }), ...(from !== null && { since: String(from) }) };
    setParameters(kept, { replace: true });
  };
  return (
    <Stack>
      <TimeSlider phone={phone} at={at} since={since} onChange={turn} />
      {since === null ? <Listing phone={phone} /> : <Changes phone={phone} from={since} to={at ?? phone.sync.position} />}
    </Stack>
  );
}

/** A folder. Paths are percent-encoded as the API gives them, so any name works. */
function Listing({ phone }: { phone: Phone }) {
  const [parameters, setParameters] = useSearchParams();
  const path = parameters.get('path') ?? '/';
  const at = parameters.get('at');
  const position = at === null ? null : Number(at);
  const [shown, show] = useState<string | null>(null);
  const listing = useQuery({
    queryKey: ['files', phone.id, path, position],
    queryFn: () => files(phone.id, path, position),
    placeholderData: (old) => old,
  });
  const go = (to: string, as: string | null) => setParameters({ path: to, ...(as !== null && { at: as }) });
  const open = (entry: FileEntry) => {
    if (entry.kind === 'directory') go(entry.path, at);
    else if (previewable(entry)) show(entry.path);
  };
  const parts = path.split('/').filter(Boolean);
  return (
    <Stack>
      {at !== null && (
        <Alert color="blue" icon={<IconHistory />}>
          <Group justify="space-between">
            <Text size="sm">The files as they were at event {Number(at).toLocaleString()} of the log.</Text>
            <Group gap="md">
              {phone.standing === 'released' && <BootThere phone={phone} position={Number(at)} />}
              <Anchor component="button" size="sm" onClick={() => go(path, null)}>
                Show them as they are now
              </Anchor>
            </Group>
          </Group>
        </Alert>
      )}
      <Breadcrumbs style={{ flexWrap: 'wrap' }}>
        <Anchor component="button" onClick={() => go('/', at)}>
          {phone.serial}
        </Anchor>
        {parts.map((part, depth) => (
          <Anchor component="button" key={depth} onClick={() => go(`/${parts.slice(0, depth + 1).join('/')}`, at)}>
            {readable(part)}
          </Anchor>
        ))}
      </Breadcrumbs>
      <Failure error={listing.error} retry={listing.refetch} />
      {listing.isPending && (
        <Center p="xl">
          <Loader aria-label="Loading files" />
        </Center>
      )}
      {listing.data && !listing.error && listing.data.entries.length === 0 && <Empty icon={IconFolderOpen} title="This folder is empty" />}
      {listing.data && !listing.error && listing.data.entries.length > 0 && (
        <DataTable
          label={`Files in ${readable(path)}`}
          noun="item"
          rows={listing.data.entries}
          columns={columns(phone, position, open)}
          rowKey={(entry) => entry.path}
          onRow={open}
        />
      )}
      {shown !== null && <Preview phone={phone} path={shown} position={position} onClose={() => show(null)} />}
    </Stack>
  );
}

function previewable(entry: FileEntry): boolean {
  return entry.kind === 'file' && entry.size <= PREVIEW_BYTES_MAX;
}

/** Begins a copy of the twin with the files as of then, and shows it beside the twin. */
function BootThere({ phone, position }: { phone: Phone; position: number }) {
  const navigate = useNavigate();
  const boot = useMutation({ mutationFn: () => forkTwin(phone.id, position), onSuccess: () => navigate(`/phones/${phone.id}`) });
  return (
    <>
      <Failure error={boot.error} />
      {boot.isPending && <Loader size={14} aria-label="A copy boots" />}
      <Anchor component="button" size="sm" disabled={boot.isPending} onClick={() => boot.mutate()}>
        Boot a copy as of then
      </Anchor>
    </>
  );
}

function columns(phone: Phone, position: number | null, open: (entry: FileEntry) => void): Column<FileEntry>[] {
  return [
    {
      label: 'Name',
      // Folders first.
      sort: (entry) => `${entry.kind === 'directory' ? 0 : 1}${entry.name}`,
      show: (entry) => <Name entry={entry} open={open} />,
    },
    { label: 'Size', align: 'right', width: 110, sort: (entry) => (entry.kind === 'file' ? entry.size : null), show: (entry) => entry.kind === 'file' && size(entry.size) },
    {
      label: 'Rights',
      width: 150,
      show: (entry) => (
        <Tooltip label={`owner ${entry.uid}, group ${entry.gid}`}>
          <Text span size="xs" ff="monospace">
            {permissions(entry.mode)}
          </Text>
        </Tooltip>
      ),
    },
    { label: 'Changed', width: 150, sort: (entry) => entry.modified_at, show: (entry) => <Ago time={entry.modified_at} /> },
    {
      label: '',
      width: 50,
      show: (entry) =>
        entry.kind === 'file' && (
          <Tooltip label="Download">
            <ActionIcon
              component="a"
              href={fileAt(phone.id, entry.path, position)}
              size="sm"
              variant="subtle"
              aria-label={`Download ${entry.name}`}
              onClick={(event) => event.stopPropagation()}
            >
              <IconDownload size={16} />
            </ActionIcon>
          </Tooltip>
        ),
    },
  ];
}

function Name({ entry, open }: { entry: FileEntry; open: (entry: FileEntry) => void }) {
  const Icon = entry.kind === 'directory' ? IconFolder : entry.target === null ? IconFile : IconLink;
  const opens = entry.kind === 'directory' || previewable(entry);
  return (
    <Group gap="sm" wrap="nowrap">
      <Icon size={18} opacity={0.7} aria-hidden style={{ flexShrink: 0 }} />
      <Text span size="sm" style={{ wordBreak: 'break-all' }}>
        {opens ? (
          <Anchor
            component="button"
            inherit
            ta="left"
            c="inherit"
            onClick={(event) => {
              event.stopPropagation();
              open(entry);
            }}
          >
            {entry.name}
          </Anchor>
        ) : (
          entry.name
        )}
        {entry.target !== null && (
          <Text span inherit c="dimmed">
            {' '}
            → {readable(entry.target)}
          </Text>
        )}
      </Text>
    </Group>
  );
}
