import { Anchor, Text } from '@mantine/core';

import type { Period, Report, Table } from '../api';
import { DataTable, type Column } from '../parts/DataTable';
import { At } from '../parts/times';
import { prior } from './period';
import type { Asked } from './Records';
import { heading, quantity, roleOf, rowsOf, type Row } from './table';
import { Changed } from './Totals';

interface Props {
  report: Report;
  table: Table;
  period: Period;
  onAsk: (asked: Asked) => void;
}

/** A report's rows; each number leads to its records. */
export function ReportTable({ report, table, period, onAsk }: Props) {
  const texts = table.columns.filter((column) => column.type === 'text').map((column) => column.name);
  const who = (row: Row) => texts.map((name) => row[name]).filter(Boolean).join(', ');
  const columns = table.columns.map(({ name, type }): Column<Row> => {
    const role = roleOf(name, table);
    const number = type === 'number';
    return {
      label: heading(name),
      ...(number && { align: 'right' }),
      sort: (row) => row[name] || (number ? row[name]! : null),
      show: (row) => {
        const cell = row[name] ?? null;
        if (role?.is === 'change') return <Changed now={Number(row[role.measure])} before={Number(row[`${role.measure}_before`])} measure={role.measure} />;
        if (cell === null || cell === '') return '–';
        if (type === 'time') return <At time={String(cell)} />;
        if (typeof cell !== 'number') return <Text inherit span style={{ whiteSpace: 'nowrap' }}>{String(cell)}</Text>;
        const text = quantity(name, cell);
        const tables = recordsBehind(report, name);
        if (cell === 0 || tables.length === 0) return text;
        const asked: Asked = {
          title: `${heading(name)} of ${who(row)}: ${text}`,
          period: role?.is === 'before' ? prior(period) : period,
          tables,
          row,
        };
        return (
          <Anchor component="button" inherit underline="always" onClick={() => onAsk(asked)} aria-label={`${text}: records behind ${heading(name)} of ${who(row)}`}>
            {text}
          </Anchor>
        );
      },
    };
  });
  return <DataTable label={report.title} noun="row" rows={rowsOf(table)} columns={columns} rowKey={(_, index) => index} minWidth={720} />;
}

/** The tables whose records a column's number counts: the one that it is named after, else all that the report has. */
export function recordsBehind(report: Report, column: string): Report['records'] {
  const named = report.records.filter(({ table }) => column.startsWith(table));
  return named.length > 0 ? named : report.records;
}
