import { Anchor, Badge, Loader, Modal, Stack, Text, Title } from '@mantine/core';
import { IconArrowDownLeft, IconArrowUpRight } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { Link } from 'react-router';

import { phones, reportRecords, type Cell, type Me, type Period, type Phone, type Report, type Table } from '../api';
import { DataTable, type Column } from '../parts/DataTable';
import { Failure } from '../parts/Failure';
import { At, exact } from '../parts/times';
import { named } from './period';
import { heading, quantity, rowsOf, type Row } from './table';

/** What is asked for: the records behind one number of a row. */
export interface Asked {
  title: string;
  period: Period;
  tables: Report['records'];
  row: Row;
}

/** The records behind a number: each leads to the place in the phone's log where it was first seen. */
export function Records({ report, asked, me, onClose }: { report: Report; asked: Asked; me: Me; onClose: () => void }) {
  return (
    <Modal opened onClose={onClose} size="min(1320px, 94vw)" title={asked.title}>
      <Stack>
        <Text size="sm" c="dimmed">
          {named(asked.period)}
        </Text>
        {asked.tables.map((of) => (
          <RecordsOf key={of.table} report={report} asked={asked} of={of} me={me} />
        ))}
      </Stack>
    </Modal>
  );
}

function RecordsOf({ report, asked, of, me }: { report: Report; asked: Asked; of: Report['records'][number]; me: Me }) {
  const key = Object.fromEntries(of.by.map((column) => [column, String(asked.row[column] ?? '')]));
  const records = useQuery({
    queryKey: ['records', report.name, of.table, key, asked.period],
    queryFn: () => reportRecords(report.name, asked.period, of.table, key),
  });
  const known = useQuery({ queryKey: ['phones'], queryFn: phones });
  const table = records.data;
  return (
    <div>
      <Title order={3} fz="h5" mb="xs">
        {heading(of.table)}
        {table && ` (${table.rows.length.toLocaleString()}${table.truncated ? ' and more' : ''})`}
      </Title>
      {records.isPending && <Loader size="sm" aria-label="Loading records" />}
      <Failure error={records.error} retry={records.refetch} />
      {table?.rows.length === 0 && <Text c="dimmed">None in this period.</Text>}
      {table && table.rows.length > 0 && (
        <DataTable
          label={heading(of.table)}
          noun="record"
          rows={rowsOf(table)}
          columns={columnsOf(table, known.data ?? [], me)}
          rowKey={(row) => `${row.phone} ${row.source_path} ${row.source_row} ${row.position}`}
          minWidth={1040}
        />
      )}
    </div>
  );
}

/** Said by other columns: when a call ended by its beginning and duration, the row of a database beside the database. */
const SAID_ELSEWHERE = ['ended', 'source_row'];

/** What a record's columns are called, in the order in which people ask; others follow as they came. */
const NAMES: Record<string, string> = {
  started: 'Started',
  at: 'At',
  direction: 'Direction',
  party: 'With',
  duration_s: 'Duration',
  size_bytes: 'Size',
  answered: 'Answered',
  dropped: 'Dropped',
  roaming: 'Roaming',
  operator: 'Network',
  technology: 'Technology',
  tower: 'Tower',
  signal_pct: 'Signal, %',
  person: 'Person',
  department: 'Department',
  carrier: 'Carrier',
  phone: 'Phone',
  position: 'Log position',
  source_path: 'Source',
};

function columnsOf(table: Table, phones: Phone[], me: Me): Column<Row>[] {
  const order = Object.keys(NAMES);
  const rank = (name: string) => (order.includes(name) ? order.indexOf(name) : order.length);
  // Who may not see logs is not led there.
  const mayFollow = me.role !== 'mai';
  const serial = (id: Cell) => phones.find((phone) => phone.id === id)?.serial ?? String(id);
  return table.columns
    .filter(({ name }) => !SAID_ELSEWHERE.includes(name))
    .toSorted((a, b) => rank(a.name) - rank(b.name))
    .map(({ name, type }) => ({
      label: NAMES[name] ?? heading(name),
      ...(type === 'number' && { align: 'right' as const }),
      sort: (row) => (name === 'phone' ? serial(row.phone!) : row[name]!),
      show: (row) => {
        const cell = row[name] ?? null;
        if (name === 'answered') return cell === null ? 'no' : <span title={exact(String(cell))}>yes</span>;
        if (cell === null || cell === '') return '–';
        if (type === 'time') return <At time={String(cell)} />;
        switch (name) {
          case 'direction':
            return <Direction out={cell === 'out'} />;
          case 'phone':
            return mayFollow ? (
              <Anchor component={Link} size="sm" to={`/phones/${cell}`}>
                {serial(cell)}
              </Anchor>
            ) : (
              serial(cell)
            );
          case 'position': {
            const event = `event ${Number(cell).toLocaleString()}`;
            return mayFollow ? (
              <Anchor component={Link} size="sm" to={`/phones/${row.phone}/log?at=${cell}`}>
                {event}
              </Anchor>
            ) : (
              event
            );
          }
          case 'source_path':
            return (
              <span title={String(cell)}>
                {String(cell).split('/').at(-1)}, row {Number(row.source_row).toLocaleString()}
              </span>
            );
          default:
            if (typeof cell === 'boolean') return cell ? 'yes' : 'no';
            return typeof cell === 'number' ? quantity(name, cell) : String(cell);
        }
      },
    }));
}

function Direction({ out }: { out: boolean }) {
  const Icon = out ? IconArrowUpRight : IconArrowDownLeft;
  return (
    <Badge variant="light" color={out ? 'indigo' : 'teal'} leftSection={<Icon size={12} aria-hidden />}>
      {out ? 'outgoing' : 'incoming'}
    </Badge>
  );
}
