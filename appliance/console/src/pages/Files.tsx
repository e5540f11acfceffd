import { ActionIcon, Anchor, Breadcrumbs, Center, Loader, Paper, Stack, Table, Text } from '@mantine/core';
import { IconDownload, IconFile, IconFolder, IconLink } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useState } from 'react';

import { fileAt, files, type FileEntry, type Phone } from '../api';
import { Failure } from '../parts/Failure';
import { Ago } from '../parts/times';

const UNITS = ['B', 'KiB', 'MiB', 'GiB'];

/** A size people can read. */
export function size(bytes: number): string {
  const power = Math.min(Math.floor(Math.log2(Math.max(bytes, 1)) / 10), UNITS.length - 1);
  return `${(bytes / 1024 ** power).toLocaleString('en', { maximumFractionDigits: power ? 1 : 0 })} ${UNITS[power]}`;
}

/** The phone's files as its twin has them. Paths are percent-encoded as the API gives them, so any name works. */
export function Files({ phone }: { phone: Phone }) {
  const [path, open] = useState('/');
  const listing = useQuery({ queryKey: ['files', phone.id, path], queryFn: () => files(phone.id, path), placeholderData: (old) => old });
  const parts = path.split('/').filter(Boolean);
  return (
    <Stack>
      <Breadcrumbs>
        <Anchor onClick={() => open('/')}>{phone.serial}</Anchor>
        {parts.map((part, depth) => (
          <Anchor key={depth} onClick={() => open(`/${parts.slice(0, depth + 1).join('/')}`)}>
            {readable(part)}
          </Anchor>
        ))}
      </Breadcrumbs>
      {listing.isPending && <Loader />}
      <Failure error={listing.error} />
      {listing.data && (
        <Paper withBorder>
          {listing.data.entries.length === 0 ? (
            <Center p="xl">
              <Text c="dimmed">This folder is empty.</Text>
            </Center>
          ) : (
            <Table highlightOnHover verticalSpacing={6}>
              <Table.Tbody>
                {listing.data.entries.map((entry) => (
                  <Entry key={entry.path} phone={phone} entry={entry} open={open} />
                ))}
              </Table.Tbody>
            </Table>
          )}
        </Paper>
      )}
    </Stack>
  );
}

function Entry({ phone, entry, open }: { phone: Phone; entry: FileEntry; open: (path: string) => void }) {
  const folder = entry.kind === 'directory';
  const Icon = folder ? IconFolder : entry.target === null ? IconFile : IconLink;
  return (
    <Table.Tr style={folder ? { cursor: 'pointer' } : {}} onClick={folder ? () => open(entry.path) : undefined}>
      <Table.Td w={40}>
        <Icon size={18} style={{ display: 'block' }} opacity={0.7} />
      </Table.Td>
      <Table.Td>
        {entry.name}
        {entry.target !== null && (
          <Text span c="dimmed">
            {' '}
            → {readable(entry.target)}
          </Text>
        )}
      </Table.Td>
      <Table.Td ta="right" w={110}>
        {folder ? '' : size(entry.size)}
      </Table.Td>
      <Table.Td w={160}>
        <Ago time={entry.modified_at} />
      </Table.Td>
      <Table.Td w={50}>
        {!folder && entry.target === null && (
          <ActionIcon component="a" href={fileAt(phone.id, entry.path)} variant="subtle" aria-label={`Download ${entry.name}`}>
            <IconDownload size={16} />
          </ActionIcon>
        )}
      </Table.Td>
    </Table.Tr>
  );
}

/** Percent-encoded bytes for people: as text where they are UTF-8, else as they are. */
export function readable(encoded: string): string {
  try {
    return decodeURIComponent(encoded);
  } catch {
    return encoded;
  }
}
