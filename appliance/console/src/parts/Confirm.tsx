import { Button, Group, Modal, Stack, Text, TextInput } from '@mantine/core';
import { useMutation } from '@tanstack/react-query';
import { type ReactNode, useState } from 'react';

import { Failure } from './Failure';

interface Props {
  title: string;
  /** What will happen, said before it does. */
  children: ReactNode;
  action: string;
  color?: string;
  /** Asks for a reason, which is recorded. */
  withReason?: boolean;
  onConfirm: (reason: string) => Promise<unknown>;
  onClose: () => void;
}

/** Asks before something is done that is not undone by a click. */
export function Confirm({ title, children, action, color, withReason, onConfirm, onClose }: Props) {
  const [reason, setReason] = useState('');
  const run = useMutation({ mutationFn: () => onConfirm(reason), onSuccess: onClose });
  return (
    <Modal opened onClose={onClose} title={title} centered>
      <Stack>
        <Text size="sm">{children}</Text>
        {withReason && (
          <TextInput
            label="Reason"
            description="Kept in the record"
            value={reason}
            onChange={(e) => setReason(e.currentTarget.value)}
            data-autofocus
          />
        )}
        <Failure error={run.error} />
        <Group justify="flex-end">
          <Button variant="default" onClick={onClose}>
            Cancel
          </Button>
          <Button {...(color && { color })} loading={run.isPending} onClick={() => run.mutate()}>
            {action}
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}
