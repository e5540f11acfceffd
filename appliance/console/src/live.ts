import { type QueryKey, useQueryClient } from '@tanstack/react-query';
import { useEffect, useState } from 'react';

/** The appliance's word that something changed [appliance/src/live.rs]. */
export type Notice = { type: 'phone' | 'log' | 'twin' | 'drive' | 'conflict' | 'settings'; phone?: string };

/** A phone in use changes many times a second; people need to see it only so often, in ms. */
const SETTLE_MS = 250;

/** Which queries a notice makes stale. */
export function staleAfter(notice: Notice): QueryKey[] {
  const phone = [['phones'], ['phone', notice.phone]];
  switch (notice.type) {
    case 'log':
      return [['log', notice.phone], ['files', notice.phone], ...phone];
    case 'phone':
      return [['verification', notice.phone], ...phone];
    case 'conflict':
      return [['conflicts', notice.phone], ...phone];
    case 'settings':
      return [['codes'], ['users']];
    default:
      return phone;
  }
}

/**
 * Keeps what is on the page true: the appliance says what changed, and it is asked again. False while the appliance cannot be heard, when
 * what is shown may be old.
 */
export function useLive(): boolean {
  const queries = useQueryClient();
  const [heard, setHeard] = useState(true);
  useEffect(() => {
    const source = new EventSource('/api/live');
    const stale = new Map<string, QueryKey>();
    let timer: ReturnType<typeof setTimeout> | undefined;
    const settle = () => {
      timer = undefined;
      for (const queryKey of stale.values()) void queries.invalidateQueries({ queryKey });
      stale.clear();
    };
    source.addEventListener('notice', (event) => {
      for (const queryKey of staleAfter(JSON.parse(event.data))) stale.set(JSON.stringify(queryKey), queryKey);
      timer ??= setTimeout(settle, SETTLE_MS);
    });
    const everything = () => void queries.invalidateQueries({ predicate: (query) => query.queryKey[0] !== 'me' });
    source.addEventListener('lagged', everything);
    source.addEventListener('open', () => {
      setHeard(true);
      // After a break nobody knows what was missed.
      everything();
    });
    source.addEventListener('error', () => {
      setHeard(false);
      // A refusal is not tried again: the login has ended.
      if (source.readyState === EventSource.CLOSED) void queries.invalidateQueries({ queryKey: ['me'] });
    });
    return () => {
      clearTimeout(timer);
      source.close();
    };
  }, [queries]);
  return heard;
}
