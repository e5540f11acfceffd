import { Alert, Text } from '@mantine/core';
import { IconAlertTriangle } from '@tabler/icons-react';

import { ApiError } from '../api';

/** What failed, and what a person can do about it. Nothing while nothing has. */
export function Failure({ error }: { error: unknown }) {
  if (!error) return null;
  const message = error instanceof Error ? error.message : String(error);
  const advice = error instanceof ApiError ? error.advice : null;
  return (
    <Alert color="red" icon={<IconAlertTriangle />} role="alert">
      <Text size="sm">{message}</Text>
      {advice && (
        <Text size="sm" c="dimmed" mt={4}>
          {advice}
        </Text>
      )}
    </Alert>
  );
}
