import { act, screen } from '@testing-library/react';
import { useQuery } from '@tanstack/react-query';
import { afterEach, beforeEach, expect, test, vi } from 'vitest';

import { staleAfter, useLive, type Notice } from './live';
import { show } from './testing';

/** The appliance's end of the live connection. */
class Source extends EventTarget {
  static readonly CLOSED = 2;
  static latest: Source;
  readyState = 1;
  constructor() {
    super();
    Source.latest = this;
  }
  tell(notice: Notice) {
    this.dispatchEvent(new MessageEvent('notice', { data: JSON.stringify(notice) }));
  }
  close() {}
}

beforeEach(() => {
  vi.useFakeTimers();
  vi.stubGlobal('EventSource', Source);
});
afterEach(() => vi.useRealTimers());

const settle = () => act(() => vi.advanceTimersByTimeAsync(1000));

test('notices make stale what they are about, and no more', () => {
  expect(staleAfter({ type: 'log', phone: 'p' })).toEqual([['log', 'p'], ['files', 'p'], ['phones'], ['phone', 'p']]);
  expect(staleAfter({ type: 'twin', phone: 'p' })).toEqual([['phones'], ['phone', 'p']]);
  expect(staleAfter({ type: 'phone', phone: 'p' })).toEqual([['verification', 'p'], ['phones'], ['phone', 'p']]);
  expect(staleAfter({ type: 'settings' })).toEqual([['codes'], ['users']]);
});

function watch(key: string[]) {
  const looks = vi.fn(async () => 0);
  const Page = () => {
    const heard = useLive();
    useQuery({ queryKey: key, queryFn: looks });
    return <p>{heard ? 'heard' : 'not heard'}</p>;
  };
  show(<Page />);
  return looks;
}

test('many notices at once are one look, at the phone that they are about', async () => {
  const looks = watch(['phone', 'p']);
  await settle();
  expect(looks).toHaveBeenCalledTimes(1);
  for (let i = 0; i < 100; i += 1) Source.latest.tell({ type: 'twin', phone: 'p' });
  Source.latest.tell({ type: 'twin', phone: 'q' });
  await settle();
  expect(looks).toHaveBeenCalledTimes(2);
  Source.latest.tell({ type: 'twin', phone: 'q' });
  await settle();
  expect(looks).toHaveBeenCalledTimes(2);
});

test('after a break everything is looked at again, and a break is told', async () => {
  const looks = watch(['files', 'p', '/']);
  await settle();
  act(() => void Source.latest.dispatchEvent(new Event('error')));
  expect(screen.getByText('not heard')).toBeTruthy();
  act(() => void Source.latest.dispatchEvent(new Event('open')));
  expect(screen.getByText('heard')).toBeTruthy();
  await settle();
  expect(looks).toHaveBeenCalledTimes(2);
});

test('a refused connection asks who we are: the login has ended', async () => {
  const looks = watch(['me']);
  await settle();
  Source.latest.readyState = Source.CLOSED;
  act(() => void Source.latest.dispatchEvent(new Event('error')));
  await settle();
  expect(looks).toHaveBeenCalledTimes(2);
});
