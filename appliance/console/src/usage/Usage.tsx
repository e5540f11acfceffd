import { ActionIcon, Alert, Button, Center, Group, Loader, SegmentedControl, Stack, Tabs, Text, TextInput, Title, Tooltip } from '@mantine/core';
import { IconChartBarOff, IconDownload, IconRefresh } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useMemo, useState } from 'react';
import { useSearchParams } from 'react-router';

import { reports, runReport, type Me, type Period, type Report, type Table } from '../api';
import { Empty } from '../parts/Empty';
import { Failure, sentence } from '../parts/Failure';
import { At } from '../parts/times';
import { Chart } from './Chart';
import { choiceOf, lastDays, named, periodOf, PERIODS, prior, type Choice } from './period';
import { Records, type Asked } from './Records';
import { ReportTable } from './ReportTable';
import { csv, totals } from './table';
import { Totals } from './Totals';

/** Phones are in use while a report is looked at; how often it is run again, in ms. */
const REFRESH_MS = 60_000;

/** Usage: one report at a time, as totals, chart and table; each number leads to the records behind it. */
export default function Usage({ me }: { me: Me }) {
  const all = useQuery({ queryKey: ['reports'], queryFn: reports, staleTime: Infinity });
  const [parameters, setParameters] = useSearchParams();
  const choice = choiceOf(parameters);
  // The same period until another is chosen, though the present moves on.
  const key = JSON.stringify(choice);
  const period = useMemo(() => periodOf(JSON.parse(key), new Date()), [key]);
  if (all.isPending) {
    return (
      <Center p="xl">
        <Loader aria-label="Loading reports" />
      </Center>
    );
  }
  if (!all.data) return <Failure error={all.error} retry={all.refetch} />;
  const report = all.data.find((report) => report.name === parameters.get('report')) ?? all.data[0];
  const set = (report: string | undefined, choice: Choice) => setParameters({ ...(report && { report }), ...choice }, { replace: true });
  return (
    <Stack>
      <title>Usage · Pollux</title>
      <Group justify="space-between" align="flex-end">
        <Title order={1} fz="h2">
          Usage
        </Title>
        <ChoosePeriod choice={choice} onChoice={(choice) => set(report?.name, choice)} />
      </Group>
      <Tabs value={report?.name ?? null} onChange={(name) => set(name ?? undefined, choice)} keepMounted={false}>
        <Tabs.List aria-label="Reports" mb="md">
          {all.data.map(({ name, title }) => (
            <Tabs.Tab key={name} value={name}>
              {title}
            </Tabs.Tab>
          ))}
        </Tabs.List>
        {period === null && <Alert color="yellow">Choose a first day and a last day that is not before it.</Alert>}
        {all.data.map((report) => (
          <Tabs.Panel key={report.name} value={report.name}>
            {period && <One report={report} period={period} me={me} />}
          </Tabs.Panel>
        ))}
      </Tabs>
    </Stack>
  );
}

function ChoosePeriod({ choice, onChoice }: { choice: Choice; onChoice: (choice: Choice) => void }) {
  const own = 'from' in choice;
  const choose = (value: string) => {
    if (value !== 'own') return onChoice({ days: value });
    const { from, to } = lastDays(Number('days' in choice ? choice.days : '30'), new Date());
    onChoice({ from: isoDay(new Date(from)), to: isoDay(new Date(Date.parse(to) - 1)) });
  };
  return (
    <Group align="flex-end">
      {own && (
        <>
          <TextInput type="date" size="xs" label="First day" value={choice.from} onChange={(e) => onChoice({ ...choice, from: e.currentTarget.value })} />
          <TextInput type="date" size="xs" label="Last day" value={choice.to} onChange={(e) => onChoice({ ...choice, to: e.currentTarget.value })} />
        </>
      )}
      <SegmentedControl
        aria-label="Period"
        value={own ? 'own' : choice.days}
        onChange={choose}
        data={[...Object.entries(PERIODS).map(([value, label]) => ({ value, label })), { value: 'own', label: 'From … to' }]}
      />
    </Group>
  );
}

/** `YYYY-MM-DD` of a day here. */
function isoDay(date: Date): string {
  const two = (number: number) => String(number).padStart(2, '0');
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
}

function One({ report, period, me }: { report: Report; period: Period; me: Me }) {
  const [asked, ask] = useState<Asked | null>(null);
  const answer = useQuery({
    queryKey: ['report', report.name, period],
    queryFn: () => runReport(report.name, period),
    refetchInterval: REFRESH_MS,
    placeholderData: (old) => old,
  });
  const compared = answer.data?.columns.some((column) => column.name.endsWith('_before'));
  return (
    <Stack>
      <Group justify="space-between" align="flex-start">
        <div>
          <Text>{report.about}</Text>
          <Text c="dimmed" size="sm">
            {named(period)}
            {compared && `, against ${named(prior(period))}`}
            {answer.data && (
              <>
                {' '}
                · as of <At time={new Date(answer.dataUpdatedAt).toISOString()} />
              </>
            )}
          </Text>
        </div>
        <Group gap="xs">
          <Tooltip label="Run it again">
            <ActionIcon variant="default" size="lg" aria-label="Run the report again" loading={answer.isFetching} onClick={() => answer.refetch()}>
              <IconRefresh size={16} />
            </ActionIcon>
          </Tooltip>
          <Button
            variant="default"
            leftSection={<IconDownload size={16} />}
            disabled={!answer.data || answer.data.rows.length === 0}
            onClick={() => download(`${report.name}.csv`, answer.data!)}
          >
            CSV
          </Button>
        </Group>
      </Group>
      {answer.isPending && (
        <Center p="xl">
          <Loader aria-label="Running the report" />
        </Center>
      )}
      <Failure error={answer.error} retry={answer.refetch} />
      {answer.data?.unread?.map(({ phone, person, trouble }) => (
        <Alert key={phone} color="yellow" title={`Not all is in it of ${person}`}>
          {sentence(trouble)} What was read before counts; the rest does once it can be read.
        </Alert>
      ))}
      {answer.data && answer.data.rows.length === 0 && (
        <Empty icon={IconChartBarOff} title="Nothing was recorded in this period">
          Facts come from the phones’ own databases as they are used. Choose a longer period, or look whether the phones are connected.
        </Empty>
      )}
      {answer.data && answer.data.rows.length > 0 && (
        <>
          <Totals totals={totals(answer.data, report.chart?.measures ?? [])} />
          {report.chart && <Chart chart={report.chart} table={answer.data} />}
          <ReportTable report={report} table={answer.data} period={period} onAsk={ask} />
          {answer.data.truncated && (
            <Alert color="yellow">There are more rows than the {answer.data.rows.length.toLocaleString()} shown; choose a shorter period to see all.</Alert>
          )}
        </>
      )}
      {asked && <Records report={report} asked={asked} me={me} onClose={() => ask(null)} />}
    </Stack>
  );
}

/** Hands the answer to the browser as a file. */
function download(name: string, table: Table) {
  const url = URL.createObjectURL(new Blob([csv(table)], { type: 'text/csv' }));
  const link = document.createElement('a');
  link.href = url;
  link.download = name;
  link.click();
  URL.revokeObjectURL(url);
}
