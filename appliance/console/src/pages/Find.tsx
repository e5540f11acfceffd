import { Alert, Anchor, Button, Code, Group, Loader, Stack, Text, TextInput, Title } from '@mantine/core';
import { IconFileSearch, IconSearch, IconSearchOff } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { type FormEvent, useEffect, useState } from 'react';
import { Link, useSearchParams } from 'react-router';

import { findStep, phones, type Match, type Phone, type Wanted } from '../api';
import { DataTable, type Column } from '../parts/DataTable';
import { Empty } from '../parts/Empty';
import { Failure } from '../parts/Failure';
import { readable } from '../parts/paths';
import { Ago } from '../parts/times';
import { count, size } from '../parts/units';

/** As many as a person would look through; who wants more asks more narrowly. */
const FOUND_MAX = 500;

interface Found extends Match {
  phone: Phone;
  position: number;
}

/** Files of all phones, by name and contents, now or as of a time. What is wanted stands in the address. */
export default function Find() {
  const [parameters, setParameters] = useSearchParams();
  const wanted: Wanted = { pattern: parameters.get('name') ?? '', contents: parameters.get('text') ?? '', at: parameters.get('at') ?? '' };
  const all = useQuery({ queryKey: ['phones'], queryFn: phones });
  const ask = (event: FormEvent<HTMLFormElement>) => {
    event.preventDefault();
    const form = new FormData(event.currentTarget);
    const given = [...form.entries()].map(([name, value]) => [name, String(value).trim()]).filter(([, value]) => value);
    setParameters(Object.fromEntries(given));
  };
  return (
    <Stack gap="lg">
      <title>Find · Pollux</title>
      <Title order={1} fz="h2">
        Find files
      </Title>
      <form onSubmit={ask} key={`form ${parameters}`}>
        <Group align="end">
          <TextInput name="name" label="Name" placeholder="*.txt, or a path: /home/*/Notes/*" defaultValue={wanted.pattern} required style={{ flexGrow: 1 }} />
          <TextInput name="text" label="With this text in it" defaultValue={wanted.contents} style={{ flexGrow: 1 }} />
          <TextInput name="at" label="As of, by the phone's clock" type="datetime-local" defaultValue={wanted.at} />
          <Button type="submit" leftSection={<IconSearch size={16} />}>
            Find
          </Button>
        </Group>
      </form>
      <Failure error={all.error} retry={all.refetch} />
      {wanted.pattern === '' ? (
        <Empty icon={IconFileSearch} title="Search the files of all phones">
          <Code>*</Code> stands for anything and <Code>?</Code> for one character. With a slash in it, a name is a whole path. Every moment of every phone
          can be searched: give a time to see what was there then.
        </Empty>
      ) : (
        all.data && <Results key={parameters.toString()} phones={all.data} wanted={wanted} />
      )}
    </Stack>
  );
}

/** What is found, as it is found: one phone after the other. */
function Results({ phones, wanted }: { phones: Phone[]; wanted: Wanted }) {
  const { found, done, unread, error, more } = useFound(phones, wanted);
  const searching = done < phones.length && error === null && !more;
  return (
    <Stack>
      <Group gap="xs" role="status">
        {searching && <Loader size={14} />}
        <Text size="sm" c="dimmed">
          {count(found.length, 'file')} found {searching ? `so far, in ${done} of ${count(phones.length, 'phone')}` : `in ${count(done, 'phone')}`}
          {unread > 0 && ` · ${count(unread, 'file')} could not be read, or ${unread === 1 ? 'is' : 'are'} too large`}
        </Text>
      </Group>
      <Failure error={error} />
      {more && <Alert color="yellow">There are more than {FOUND_MAX}. Ask more narrowly to see the rest.</Alert>}
      {found.length > 0 && <DataTable label="Files found" noun="file" rows={found} columns={COLUMNS} rowKey={({ phone, path }) => `${phone.id} ${path}`} />}
      {found.length === 0 && !searching && error === null && (
        <Empty icon={IconSearchOff} title="No phone has such a file">
          {wanted.at ? 'Or none had then.' : 'Names are compared letter by letter, capitals too.'}
        </Empty>
      )}
    </Stack>
  );
}

interface Progress {
  found: Found[];
  /** Phones that were searched. */
  done: number;
  unread: number;
  error: unknown;
  /** There is more than was asked for. */
  more: boolean;
}

function useFound(phones: Phone[], wanted: Wanted): Progress {
  const [progress, tell] = useState<Progress>({ found: [], done: 0, unread: 0, error: null, more: false });
  // The phones of when it was asked for: that one of them was heard of is no reason to begin anew.
  const [searched] = useState(phones);
  useEffect(() => {
    let left = false;
    const search = async () => {
      const found: Found[] = [];
      let unread = 0;
      for (const [done, phone] of searched.entries()) {
        let after: string | null = null;
        do {
          const step = await findStep(phone.id, wanted, after);
          if (left) return;
          found.push(...step.matches.map((match) => ({ ...match, phone, position: step.position })));
          unread += step.unread;
          after = step.next;
          const more = found.length > FOUND_MAX;
          tell({ found: found.slice(0, FOUND_MAX), done: done + (after === null ? 1 : 0), unread, error: null, more });
          if (more) return;
        } while (after !== null);
      }
    };
    search().catch((error: unknown) => !left && tell((so) => ({ ...so, error })));
    return () => {
      left = true;
    };
    // What is wanted stays as it is: another search is another component.
  }, [searched]);
  return progress;
}

const COLUMNS: Column<Found>[] = [
  { label: 'Phone', width: 140, sort: ({ phone }) => phone.serial, show: ({ phone }) => phone.serial },
  {
    label: 'Path',
    sort: ({ path }) => path,
    show: ({ phone, path, position, excerpt }) => (
      <>
        <Anchor component={Link} size="sm" style={{ wordBreak: 'break-all' }} to={`/phones/${phone.id}/files?${folderOf(path, position)}`}>
          {readable(path)}
        </Anchor>
        {excerpt !== null && (
          <Text size="xs" c="dimmed" lineClamp={2} style={{ wordBreak: 'break-word' }}>
            {excerpt}
          </Text>
        )}
      </>
    ),
  },
  { label: 'Size', width: 110, align: 'right', sort: (found) => found.size, show: (found) => (found.kind === 'file' ? size(found.size) : found.kind) },
  { label: 'Changed', width: 160, sort: (found) => found.modified_at, show: (found) => <Ago time={found.modified_at} /> },
];

/** Where its folder is shown, as of then. */
const folderOf = (path: string, position: number) =>
  new URLSearchParams({ path: path.slice(0, path.lastIndexOf('/')) || '/', at: String(position) }).toString();
