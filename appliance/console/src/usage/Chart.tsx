import { BarChart } from '@mantine/charts';
import { Paper, Text } from '@mantine/core';

import type { Report, Table } from '../api';
import { count } from '../parts/units';
import { heading, quantity, rowsOf, type Row } from './table';

const COLOURS = ['indigo.6', 'teal.6', 'orange.6', 'grape.6', 'cyan.6', 'pink.6'];
/** More bars than this are not told apart; the table has them all. */
const BARS_MAX = 20;
/** Height of one bar with its share of the space around it, in px. */
const BAR_PX = 20;

type Drawn = NonNullable<Report['chart']>;

/** What is drawn: a label and one number per series. */
export interface Picture {
  series: { name: string; label: string }[];
  data: (Record<string, number> & { label: string })[];
  /** Labels that found no room. */
  left: number;
}

/**
 * The bars of a chart. One measure by two columns has a bar for each value of the first, in parts by the second, so that two carriers are seen
 * beside each other; anything else has a bar for each measure.
 */
export function pictureOf({ measures, by }: Drawn, rows: Row[]): Picture {
  const text = (row: Row, column: string) => String(row[column] || 'not said');
  const parted = measures.length === 1 && by.length === 2;
  const data = new Map<string, Record<string, number> & { label: string }>();
  const series = new Map<string, string>();
  for (const row of rows) {
    const label = parted ? text(row, by[0]!) : by.map((column) => text(row, column)).join(', ');
    const bar = data.get(label) ?? ({ label } as Record<string, number> & { label: string });
    for (const measure of measures) {
      const name = parted ? `of ${text(row, by[1]!)}` : measure;
      series.set(name, parted ? text(row, by[1]!) : heading(measure));
      bar[name] = (bar[name] ?? 0) + Number(row[measure] ?? 0);
    }
    data.set(label, bar);
  }
  const bars = [...data.values()];
  return {
    series: [...series].map(([name, label]) => ({ name, label })),
    data: bars.slice(0, BARS_MAX),
    left: Math.max(bars.length - BARS_MAX, 0),
  };
}

/** A report as bars, longest labels first to be read: they lie. */
export function Chart({ chart, table }: { chart: Drawn; table: Table }) {
  const picture = pictureOf(chart, rowsOf(table));
  const measure = chart.measures[0] ?? '';
  const stacked = chart.measures.length === 1;
  const perLabel = stacked ? 1 : picture.series.length;
  const title = heading(`${chart.measures.join(' and ')} by ${chart.by.join(' and ')}`);
  return (
    <Paper p="md" component="figure" m={0}>
      <Text component="figcaption" size="sm" fw={600} mb="xs">
        {title}
      </Text>
      <div role="img" aria-label={`${title}; the table below has the numbers`}>
        <BarChart
          h={90 + picture.data.length * (12 + perLabel * BAR_PX)}
          data={picture.data}
          dataKey="label"
          orientation="vertical"
          type={stacked ? 'stacked' : 'default'}
          withLegend={picture.series.length > 1}
          legendProps={{ verticalAlign: 'top' }}
          gridAxis="y"
          tickLine="none"
          yAxisProps={{ width: 130 }}
          xAxisLabel={chart.measures.join(', ')}
          xAxisProps={{ allowDecimals: measure.startsWith('minutes') }}
          maxBarWidth={BAR_PX - 6}
          valueFormatter={(value) => quantity(measure, value)}
          series={picture.series.map(({ name, label }, i) => ({ name, label, color: COLOURS[i % COLOURS.length]! }))}
        />
      </div>
      {picture.left > 0 && (
        <Text size="xs" c="dimmed">
          The first {BARS_MAX}; {count(picture.left, 'more is', 'more are')} in the table.
        </Text>
      )}
    </Paper>
  );
}
