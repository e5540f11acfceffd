import { Alert, Button, Text } from '@mantine/core';
import { IconAlertTriangle } from '@tabler/icons-react';

import { ApiError } from '../api';

/** What failed, and what a person can do about it. Nothing while nothing has. */
export function Failure({ error, retry }: { error: unknown; retry?: () => unknown }) {
  if (!error) return null;
  const message = error instanceof Error ? error.message : String(error);
  const advice = error instanceof ApiError ? error.advice : null;
  // What is not there, or not allowed, is not there the next moment either.
  const hopeful = !(error instanceof ApiError) || error.status === 0 || error.status >= 500;
  return (
    <Alert color="red" icon={<IconAlertTriangle />} role="alert">
      <Text size="sm">{sentence(message)}</Text>
      {advice && (
        <Text size="sm" c="dimmed" mt={4}>
          {sentence(advice)}
        </Text>
      )}
      {retry && hopeful && (
        <Button mt="xs" size="xs" variant="light" color="red" onClick={() => retry()}>
          Try again
        </Button>
      )}
    </Alert>
  );
}

/** The API speaks in phrases; people read sentences. */
export function sentence(text: string): string {
  const begun = text.charAt(0).toUpperCase() + text.slice(1);
  return /[.!?…]$/.test(begun) ? begun : `${begun}.`;
}
