import { Group, Pagination, Paper, Stack, Table, Text, UnstyledButton } from '@mantine/core';
import { IconArrowDown, IconArrowUp, IconArrowsSort } from '@tabler/icons-react';
import { type ReactNode, useState } from 'react';

import { count } from './units';

/** Rows on one page: as many as a person looks through without searching. */
const PAGE_ROWS = 50;

export type Sortable = string | number | boolean | null;

export interface Column<Row> {
  label: string;
  show: (row: Row) => ReactNode;
  /** What rows are put in order by; without it they cannot be by this column. */
  sort?: (row: Row) => Sortable;
  align?: 'right';
  width?: number;
}

interface Props<Row> {
  /** What the table holds, for who cannot see it. */
  label: string;
  /** What a row is, in words: "phone". */
  noun: string;
  rows: Row[];
  columns: Column<Row>[];
  rowKey: (row: Row, index: number) => string | number;
  /** What a click anywhere on a row does; a link or button within the row must do the same. */
  onRow?: (row: Row) => void;
  /** Below this width, in px, it scrolls sideways. */
  minWidth?: number;
}

/** A table that is sorted by a click on a heading, and shown a page at a time. Until then rows are in the order they came. */
export function DataTable<Row>({ label, noun, rows, columns, rowKey, onRow, minWidth = 640 }: Props<Row>) {
  const [order, setOrder] = useState<{ by: string; down: boolean } | null>(null);
  const [chosen, choose] = useState(1);
  const sort = columns.find((column) => column.label === order?.by)?.sort;
  const sorted = sort ? rows.toSorted((a, b) => compare(sort(a), sort(b), order!.down)) : rows;
  const pages = Math.ceil(rows.length / PAGE_ROWS);
  const page = Math.min(chosen, Math.max(pages, 1));
  return (
    <Stack gap="xs">
      <Paper>
        <Table.ScrollContainer minWidth={minWidth} type="native">
          <Table highlightOnHover={!!onRow} verticalSpacing="xs" aria-label={label}>
            <Table.Thead>
              <Table.Tr>
                {columns.map((column) => {
                  const direction = order?.by === column.label ? (order.down ? 'descending' : 'ascending') : undefined;
                  const click = () => setOrder({ by: column.label, down: direction === 'ascending' });
                  return (
                    <Table.Th key={column.label} w={column.width} ta={column.align ?? 'left'} {...(direction && { 'aria-sort': direction })}>
                      {column.sort ? <Heading label={column.label} align={column.align} direction={direction} onClick={click} /> : column.label}
                    </Table.Th>
                  );
                })}
              </Table.Tr>
            </Table.Thead>
            <Table.Tbody>
              {sorted.slice((page - 1) * PAGE_ROWS, page * PAGE_ROWS).map((row, index) => (
                <Table.Tr key={rowKey(row, index)} {...(onRow && { onClick: () => onRow(row), style: { cursor: 'pointer' } })}>
                  {columns.map((column) => (
                    <Table.Td key={column.label} ta={column.align ?? 'left'}>
                      {column.show(row)}
                    </Table.Td>
                  ))}
                </Table.Tr>
              ))}
            </Table.Tbody>
          </Table>
        </Table.ScrollContainer>
      </Paper>
      {pages > 1 && (
        <Group justify="space-between">
          <Text size="sm" c="dimmed">
            {count(rows.length, noun)}, {PAGE_ROWS} on a page
          </Text>
          <Pagination size="sm" total={pages} value={page} onChange={choose} getControlProps={(control) => ({ 'aria-label': `${control} page` })} />
        </Group>
      )}
    </Stack>
  );
}

interface HeadingProps {
  label: string;
  align: 'right' | undefined;
  direction: 'ascending' | 'descending' | undefined;
  onClick: () => void;
}

function Heading({ label, align, direction, onClick }: HeadingProps) {
  const Icon = direction === 'ascending' ? IconArrowUp : direction === 'descending' ? IconArrowDown : IconArrowsSort;
  return (
    <UnstyledButton onClick={onClick} w="100%" fz="inherit" fw="inherit">
      <Group gap={4} wrap="nowrap" justify={align === 'right' ? 'flex-end' : 'flex-start'}>
        {label}
        <Icon size={14} opacity={direction ? 1 : 0.35} style={{ flexShrink: 0 }} aria-hidden />
      </Group>
    </UnstyledButton>
  );
}

/** Numbers by size, texts as people order them (A2 before A10), and what is not there last in either direction. */
export function compare(a: Sortable, b: Sortable, down: boolean): number {
  if (a === null || b === null) return Number(a === null) - Number(b === null);
  const order = typeof a === 'string' && typeof b === 'string' ? a.localeCompare(b, undefined, { numeric: true }) : Number(a) - Number(b);
  return down ? -order : order;
}
