import { Alert, Button, Code, Group, Image, Loader, Modal, ScrollArea, Stack, Text } from '@mantine/core';
import { IconDownload } from '@tabler/icons-react';
import { useQuery } from '@tanstack/react-query';
import { useEffect, useState } from 'react';

import { content, fileAt, type Phone } from '../api';
import { Failure } from './Failure';
import { nameOf, readable } from './paths';
import { size } from './units';

/** Larger files are only downloaded. */
export const PREVIEW_BYTES_MAX = 4 * 1024 * 1024;
/** What is shown of a text: more does not help anybody who reads. */
const TEXT_CHARS_MAX = 200_000;

const IMAGES: [string, number[]][] = [
  ['image/png', [0x89, 0x50, 0x4e, 0x47]],
  ['image/jpeg', [0xff, 0xd8, 0xff]],
  ['image/gif', [0x47, 0x49, 0x46, 0x38]],
  ['image/webp', [0x52, 0x49, 0x46, 0x46]],
];

export type Shown = { kind: 'image'; type: string } | { kind: 'text'; text: string } | { kind: 'neither' };

/** What a file is, by its bytes; its name may say anything. */
export function look(bytes: Uint8Array): Shown {
  const image = IMAGES.find(([, magic]) => magic.every((byte, at) => bytes[at] === byte));
  if (image) return { kind: 'image', type: image[0] };
  try {
    const text = new TextDecoder('utf-8', { fatal: true }).decode(bytes);
    // Text has no control characters but tab, line feed, form feed and carriage return.
    // eslint-disable-next-line no-control-regex
    if (!/[\0-\x08\x0b\x0e-\x1a\x1c-\x1f]/.test(text)) return { kind: 'text', text };
  } catch {
    // It is not UTF-8, so it is not text.
  }
  return { kind: 'neither' };
}

interface Props {
  phone: Phone;
  /** Percent-encoded, as the API gives it. */
  path: string;
  /** Of the log; null is now. */
  position: number | null;
  onClose: () => void;
}

/** A file's content where it is text or a picture, and its download. */
export function Preview({ phone, path, position, onClose }: Props) {
  const file = useQuery({
    queryKey: ['content', phone.id, path, position],
    queryFn: async () => new Uint8Array(await (await content(phone.id, path, position)).arrayBuffer()),
    // Up to 4 MiB each: not kept beyond the look.
    gcTime: 0,
  });
  return (
    <Modal opened onClose={onClose} size="xl" title={nameOf(path)}>
      <Stack>
        <Text size="sm" c="dimmed" style={{ wordBreak: 'break-all' }}>
          {readable(path)}
          {position !== null && `, as of event ${position.toLocaleString()}`}
          {file.data && `, ${size(file.data.length)}`}
        </Text>
        {file.isPending && <Loader aria-label="Loading the file" />}
        <Failure error={file.error} />
        {file.data && <Body bytes={file.data} name={nameOf(path)} />}
        <Group justify="flex-end">
          <Button component="a" href={fileAt(phone.id, path, position)} variant="light" leftSection={<IconDownload size={16} />}>
            Download
          </Button>
        </Group>
      </Stack>
    </Modal>
  );
}

function Body({ bytes, name }: { bytes: Uint8Array<ArrayBuffer>; name: string }) {
  const shown = look(bytes);
  switch (shown.kind) {
    case 'image':
      return <Picture bytes={bytes} type={shown.type} name={name} />;
    case 'neither':
      return <Alert color="gray">This is neither text nor a picture, so it is not shown. Download it to look at it with its own program.</Alert>;
    case 'text':
      if (shown.text === '') return <Text c="dimmed">The file is empty.</Text>;
      return (
        <>
          <ScrollArea.Autosize mah="60dvh" viewportProps={{ tabIndex: 0 }}>
            <Code block style={{ whiteSpace: 'pre-wrap', wordBreak: 'break-word' }}>
              {shown.text.slice(0, TEXT_CHARS_MAX)}
            </Code>
          </ScrollArea.Autosize>
          {shown.text.length > TEXT_CHARS_MAX && <Text size="sm">The rest is in the download.</Text>}
        </>
      );
  }
}

function Picture({ bytes, type, name }: { bytes: Uint8Array<ArrayBuffer>; type: string; name: string }) {
  const [url, setUrl] = useState<string>();
  useEffect(() => {
    const made = URL.createObjectURL(new Blob([bytes], { type }));
    setUrl(made);
    return () => URL.revokeObjectURL(made);
  }, [bytes, type]);
  return <Image src={url} alt={name} mah="60dvh" fit="contain" />;
}
