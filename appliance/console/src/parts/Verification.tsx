import { Alert, Button, Checkbox, Group, List, Modal, Stack, Text } from '@mantine/core';
import { IconShieldCheck } from '@tabler/icons-react';
import { useMutation, useQuery, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { Link } from 'react-router';

import { verification, verify, type Finding, type Phone, type Side, type Verdict } from '../api';
import { Failure, sentence } from './Failure';
import { readable } from './paths';
import { Ago } from './times';
import { count, size } from './units';

/** Whether the phone's files and its flash are the same: as last proven, and to be proven again. */
export function Verification({ phone }: { phone: Phone }) {
  const [asking, ask] = useState(false);
  const queries = useQueryClient();
  const standing = useQuery({ queryKey: ['verification', phone.id], queryFn: () => verification(phone.id) });
  const begin = useMutation({
    mutationFn: (how: { reread: boolean; heal: boolean }) => verify(phone.id, how),
    onSuccess: () => {
      ask(false);
      return queries.invalidateQueries({ queryKey: ['verification', phone.id] });
    },
  });
  const running = standing.data?.running ?? null;
  const verdict = standing.data?.verdict ?? null;
  return (
    <Stack gap="xs" mt="sm">
      <Failure error={standing.error} />
      {running !== null ? (
        <Alert color="blue" title="Being verified" role="status">
          {sentence(running)}
        </Alert>
      ) : (
        verdict && <Outcome phone={phone} verdict={verdict} />
      )}
      {phone.connected && (
        <Group>
          <Button variant="subtle" size="xs" leftSection={<IconShieldCheck size={14} />} loading={running !== null} onClick={() => ask(true)}>
            Verify
          </Button>
        </Group>
      )}
      {asking && <How pending={begin.isPending} error={begin.error} onBegin={begin.mutate} onClose={() => ask(false)} />}
    </Stack>
  );
}

interface HowProps {
  pending: boolean;
  error: unknown;
  onBegin: (how: { reread: boolean; heal: boolean }) => void;
  onClose: () => void;
}

function How({ pending, error, onBegin, onClose }: HowProps) {
  const [reread, setReread] = useState(true);
  const [heal, setHeal] = useState(true);
  return (
    <Modal opened onClose={onClose} title="Verify phone and flash">
      <Stack>
        <Text size="sm">Both hash all their files. Where the hashes differ, the first path that does is found, and every one after it.</Text>
        <Checkbox
          checked={reread}
          onChange={(event) => setReread(event.currentTarget.checked)}
          label="The phone reads all its files again"
          description="Finds what decayed on the phone, or was missed. Takes as long as reading them, and some of its battery."
        />
        <Checkbox
          checked={heal}
          onChange={(event) => setHeal(event.currentTarget.checked)}
          label="Mend what differs"
          description="What the phone has stands; what decayed there is put back as it was."
        />
        <Failure error={error} />
        <Group justify="flex-end">
          <Button variant="default" onClick={onClose}>
            Cancel
          </Button>
          <Button loading={pending} onClick={() => onBegin({ reread, heal })}>
            Begin
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}

function Outcome({ phone, verdict }: { phone: Phone; verdict: Verdict }) {
  const { equal, findings, unnamed, position, at, root, reread, trouble } = verdict;
  const colour = equal === null ? 'yellow' : equal ? 'teal' : 'red';
  const title = equal === null ? 'Not verified' : equal ? 'Proven equal' : 'Phone and flash differ';
  return (
    <Alert color={colour} title={title}>
      <Text size="sm">
        {trouble !== null ? sentence(trouble) : `At event ${position.toLocaleString()}`}
        {trouble === null && root !== null && `: both have the root hash ${root.slice(0, 12)}…`}
        {trouble === null && (reread ? '; the phone had read everything again' : '; by what the phone had told')} (<Ago time={at} />
        ).
      </Text>
      {findings.length > 0 && (
        <List size="sm" mt="xs" aria-label="What was found">
          {findings.map((finding, index) => (
            <List.Item key={index}>
              <Found phone={phone} finding={finding} />
            </List.Item>
          ))}
        </List>
      )}
      {unnamed > 0 && <Text size="sm">And {count(unnamed, 'path')} more; the log has them.</Text>}
    </Alert>
  );
}

const KINDS: Record<Finding['kind'], string> = {
  missed_edit: 'was edited without the agent’s notice',
  phone_decay: 'decayed on the phone',
  divergence: 'was not the same',
};

function Found({ phone, finding }: { phone: Phone; finding: Finding }) {
  return (
    <>
      <Text span inherit fw={600} style={{ wordBreak: 'break-all' }}>
        {readable(finding.path)}
      </Text>{' '}
      {KINDS[finding.kind]}: {finding.kind === 'divergence' && `the phone has ${told(finding.phone)}, the flash ${told(finding.flash)}; `}
      {finding.outcome}.{' '}
      {finding.event && <Link to={`/phones/${phone.id}/log?at=${finding.event.position}`}>Its last event</Link>}
      {finding.kind === 'divergence' && !finding.event && 'No event explains it.'}
    </>
  );
}

function told(side: Side | null): string {
  if (!side) return 'nothing';
  return side.kind === 'file' ? `a file of ${size(side.size)}` : `a ${side.kind}`;
}
