import { Button, Group, Modal, Stack, Text, TextInput } from '@mantine/core';
import { useMutation } from '@tanstack/react-query';
import { type FormEvent, type ReactNode, useState } from 'react';

import { Failure } from './Failure';

/** What the appliance keeps of a reason, in bytes. */
const REASON_BYTES_MAX = 200;

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
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run.mutate();
  };
  return (
    <Modal opened onClose={onClose} title={title}>
      <form onSubmit={submit}>
        <Stack>
          <Text size="sm" component="div">
            {children}
          </Text>
          {withReason && (
            <TextInput
              label="Reason"
              description="Kept in the record"
              maxLength={REASON_BYTES_MAX}
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
            <Button type="submit" {...(color && { color })} loading={run.isPending} data-autofocus={!withReason || undefined}>
              {action}
            </Button>
          </Group>
        </Stack>
      </form>
    </Modal>
  );
}
