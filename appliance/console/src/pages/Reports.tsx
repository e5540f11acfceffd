import { BarChart } from '@mantine/charts';
import { Alert, Center, Loader, Modal, Paper, Select, SegmentedControl, Stack, Table as Grid, Text, Title, Group } from '@mantine/core';
import { useQuery } from '@tanstack/react-query';
import { useMemo, useState } from 'react';

import { reportRecords, reports, runReport, type Cell, type Period, type Report, type Table } from '../api';
import { Failure } from '../parts/Failure';

const COLOURS = ['indigo.6', 'teal.6', 'orange.6', 'grape.6'];
/** Bars beyond this many are not told apart; the table has them all. */
const BARS_MAX = 20;
const PERIODS = { '1': 'Today', '7': '7 days', '30': '30 days', '90': '90 days' };

/** The last `days` days up to the end of the present one, in UTC. */
export function lastDays(days: number, now = new Date()): Period {
  const end = Date.UTC(now.getUTCFullYear(), now.getUTCMonth(), now.getUTCDate() + 1);
  return { from: new Date(end - days * 86_400_000).toISOString(), to: new Date(end).toISOString() };
}

/** Usage: one report at a time, as chart and table; a click on a row shows the records behind it. */
export function Reports() {
  const all = useQuery({ queryKey: ['reports'], queryFn: reports, staleTime: Infinity });
  const [name, setName] = useState<string | null>(null);
  const [days, setDays] = useState('30');
  const period = useMemo(() => lastDays(Number(days)), [days]);
  if (all.isPending) return <Loader />;
  if (all.error) return <Failure error={all.error} />;
  const report = all.data.find((r) => r.name === name) ?? all.data[0];
  return (
    <Stack>
      <Group justify="space-between">
        <Title order={2}>Usage</Title>
        <Group>
          <SegmentedControl
            value={days}
            onChange={setDays}
            data={Object.entries(PERIODS).map(([value, label]) => ({ value, label }))}
          />
          <Select
            aria-label="Report"
            w={300}
            allowDeselect={false}
            data={all.data.map((r) => ({ value: r.name, label: r.title }))}
            value={report?.name ?? null}
            onChange={setName}
          />
        </Group>
      </Group>
      {report && <One key={report.name} report={report} period={period} />}
    </Stack>
  );
}

function One({ report, period }: { report: Report; period: Period }) {
  const [row, open] = useState<Record<string, Cell> | null>(null);
  const answer = useQuery({ queryKey: ['report', report.name, period], queryFn: () => runReport(report.name, period) });
  return (
    <Stack>
      <div>
        <Title order={3}>{report.title}</Title>
        <Text c="dimmed">{report.about}</Text>
      </div>
      {answer.isPending && <Loader />}
      <Failure error={answer.error} />
      {answer.data && answer.data.rows.length === 0 && (
        <Paper withBorder p="xl">
          <Center>
            <Text c="dimmed">Nothing was recorded in this period.</Text>
          </Center>
        </Paper>
      )}
      {answer.data && answer.data.rows.length > 0 && (
        <>
          {report.chart && <Picture report={report} table={answer.data} />}
          <Paper withBorder>
            <Rows table={answer.data} onRow={report.records.length > 0 ? open : undefined} />
          </Paper>
          {answer.data.truncated && <Alert color="yellow">There are more rows than are shown.</Alert>}
        </>
      )}
      {row && <Records report={report} period={period} row={row} onClose={() => open(null)} />}
    </Stack>
  );
}

function objects(table: Table): Record<string, Cell>[] {
  return table.rows.map((row) => Object.fromEntries(table.columns.map((column, i) => [column.name, row[i] ?? null])));
}

function Picture({ report, table }: { report: Report; table: Table }) {
  const { measures, by } = report.chart!;
  const data = objects(table)
    .slice(0, BARS_MAX)
    .map((row) => ({ ...row, label: by.map((column) => row[column] || '(unknown)').join(', ') }));
  return (
    <Paper withBorder p="md">
      <BarChart
        h={280}
        data={data}
        dataKey="label"
        withLegend={measures.length > 1}
        series={measures.map((name, i) => ({ name, label: heading(name), color: COLOURS[i % COLOURS.length]! }))}
      />
    </Paper>
  );
}

function Rows({ table, onRow }: { table: Table; onRow?: ((row: Record<string, Cell>) => void) | undefined }) {
  const rows = objects(table);
  return (
    <Grid highlightOnHover={!!onRow} verticalSpacing={6}>
      <Grid.Thead>
        <Grid.Tr>
          {table.columns.map((column) => (
            <Grid.Th key={column.name} ta={column.type === 'number' ? 'right' : 'left'}>
              {heading(column.name)}
            </Grid.Th>
          ))}
        </Grid.Tr>
      </Grid.Thead>
      <Grid.Tbody>
        {rows.map((row, i) => (
          <Grid.Tr key={i} {...(onRow && { onClick: () => onRow(row), style: { cursor: 'pointer' } })}>
            {table.columns.map((column) => (
              <Grid.Td key={column.name} ta={column.type === 'number' ? 'right' : 'left'}>
                {shown(row[column.name] ?? null, column)}
              </Grid.Td>
            ))}
          </Grid.Tr>
        ))}
      </Grid.Tbody>
    </Grid>
  );
}

function Records({ report, period, row, onClose }: { report: Report; period: Period; row: Record<string, Cell>; onClose: () => void }) {
  return (
    <Modal opened onClose={onClose} size="90%" title="The records behind this row">
      <Stack>
        {report.records.map(({ table, by }) => (
          <RecordsOf key={table} report={report} period={period} table={table} by={by} row={row} />
        ))}
      </Stack>
    </Modal>
  );
}

interface OfTable {
  report: Report;
  period: Period;
  table: string;
  by: string[];
  row: Record<string, Cell>;
}

function RecordsOf({ report, period, table, by, row }: OfTable) {
  const key = Object.fromEntries(by.map((column) => [column, String(row[column] ?? '')]));
  const records = useQuery({
    queryKey: ['records', report.name, table, key, period],
    queryFn: () => reportRecords(report.name, period, table, key),
  });
  return (
    <div>
      <Title order={5} tt="capitalize">
        {table}
      </Title>
      {records.isPending && <Loader size="sm" />}
      <Failure error={records.error} />
      {records.data && (records.data.rows.length > 0 ? <Rows table={records.data} /> : <Text c="dimmed">None.</Text>)}
    </div>
  );
}

/** `minutes_change_pct` as people write it. */
export function heading(name: string): string {
  const words = name.replace(/_pct$/, ' %').replace(/_s$/, ' (s)').replaceAll('_', ' ');
  return words.charAt(0).toUpperCase() + words.slice(1);
}

function shown(cell: Cell, column: Table['columns'][number]): string {
  if (cell === null) return '–';
  if (column.type === 'time') return new Date(String(cell)).toLocaleString();
  if (typeof cell === 'number') {
    const change = column.name.endsWith('_change_pct') && cell > 0;
    return `${change ? '+' : ''}${cell.toLocaleString()}`;
  }
  return String(cell);
}
