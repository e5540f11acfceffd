import { Anchor, Breadcrumbs, Button, Group, Loader, Menu, Stack, Tabs, Title } from '@mantine/core';
import { IconDots, IconLock } from '@tabler/icons-react';
import { useQuery, useQueryClient } from '@tanstack/react-query';
import { useState } from 'react';
import { Link, useParams } from 'react-router';

import { phone as fetchPhone, quarantine, type Me, type Phone } from '../api';
import { Confirm } from '../parts/Confirm';
import { Failure } from '../parts/Failure';
import { States } from '../parts/States';
import { Conflicts } from './Conflicts';
import { Files } from './Files';
import { Log } from './Log';
import { Twin } from './Twin';

/** One phone: its twin's screen, its log as it grows, its files. */
export function PhonePage({ me }: { me: Me }) {
  const { id } = useParams() as { id: string };
  const found = useQuery({ queryKey: ['phones', id], queryFn: () => fetchPhone(id) });
  if (found.isPending) return <Loader />;
  if (found.error) return <Failure error={found.error} />;
  const phone = found.data;
  return (
    <Stack>
      <Breadcrumbs>
        <Anchor component={Link} to="/phones">
          Phones
        </Anchor>
        <span>{phone.serial}</span>
      </Breadcrumbs>
      <Group justify="space-between">
        <Group>
          <Title order={2}>{phone.serial}</Title>
          <States phone={phone} />
        </Group>
        {me.role === 'admin' && phone.standing === 'released' && <Actions phone={phone} />}
      </Group>
      <Tabs defaultValue="screen" keepMounted={false}>
        <Tabs.List mb="md">
          <Tabs.Tab value="screen">Screen</Tabs.Tab>
          <Tabs.Tab value="log">Log</Tabs.Tab>
          <Tabs.Tab value="files">Files</Tabs.Tab>
          <Tabs.Tab value="conflicts">Conflicts{phone.conflicts > 0 && ` (${phone.conflicts})`}</Tabs.Tab>
        </Tabs.List>
        <Tabs.Panel value="screen">
          <Twin phone={phone} me={me} />
        </Tabs.Panel>
        <Tabs.Panel value="log">
          <Log phone={phone} />
        </Tabs.Panel>
        <Tabs.Panel value="files">
          <Files phone={phone} />
        </Tabs.Panel>
        <Tabs.Panel value="conflicts">
          <Conflicts phone={phone} />
        </Tabs.Panel>
      </Tabs>
    </Stack>
  );
}

function Actions({ phone }: { phone: Phone }) {
  const queries = useQueryClient();
  const [asking, ask] = useState(false);
  return (
    <>
      <Menu position="bottom-end">
        <Menu.Target>
          <Button variant="default" leftSection={<IconDots size={16} />}>
            Actions
          </Button>
        </Menu.Target>
        <Menu.Dropdown>
          <Menu.Item color="orange" leftSection={<IconLock size={16} />} onClick={() => ask(true)}>
            Put into quarantine
          </Menu.Item>
        </Menu.Dropdown>
      </Menu>
      {asking && (
        <Confirm
          title={`Put ${phone.serial} into quarantine?`}
          action="Put into quarantine"
          color="orange"
          withReason
          onConfirm={(reason) => quarantine(phone.id, reason).then(() => queries.invalidateQueries({ queryKey: ['phones'] }))}
          onClose={() => ask(false)}
        >
          Its connection is closed and its twin stopped; nothing but its registration is accepted until it is released.
        </Confirm>
      )}
    </>
  );
}
