import { Paper, Stack, Text, ThemeIcon } from '@mantine/core';
import type { ComponentType, ReactNode } from 'react';

interface Props {
  icon: ComponentType<{ size: number }>;
  title: string;
  /** What can be done about it. */
  children?: ReactNode;
}

/** Says that there is nothing, and why, instead of showing an empty table. */
export function Empty({ icon: Icon, title, children }: Props) {
  return (
    <Paper p="xl">
      <Stack align="center" gap="xs" ta="center">
        <ThemeIcon size={56} radius="xl" variant="light" color="gray">
          <Icon size={28} />
        </ThemeIcon>
        <Text fw={600}>{title}</Text>
        {children && (
          <Text component="div" size="sm" c="dimmed" maw={560}>
            {children}
          </Text>
        )}
      </Stack>
    </Paper>
  );
}
