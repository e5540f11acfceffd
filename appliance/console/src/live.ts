import { useQueryClient } from '@tanstack/react-query';
import { useEffect } from 'react';

type Notice = { type: 'phone' | 'log' | 'twin' | 'drive' | 'conflict' | 'settings'; phone?: string };

/** Which queries a notice makes stale. */
export function staleAfter(notice: Notice): unknown[][] {
  switch (notice.type) {
    case 'log':
      return [['log', notice.phone], ['files', notice.phone], ['phones']];
    case 'conflict':
      return [['conflicts', notice.phone], ['phones']];
    case 'settings':
      return [['codes'], ['users']];
    default:
      return [['phones']];
  }
}

/** Keeps what is on the page true: the appliance says what changed, and it is asked again. */
export function useLive() {
  const queries = useQueryClient();
  useEffect(() => {
    const source = new EventSource('/api/live');
    source.addEventListener('notice', (event) => {
      for (const queryKey of staleAfter(JSON.parse(event.data))) void queries.invalidateQueries({ queryKey });
    });
    const everything = () => void queries.invalidateQueries({ predicate: (query) => query.queryKey[0] !== 'me' });
    source.addEventListener('lagged', everything);
    // After a break nobody knows what was missed.
    source.addEventListener('open', everything);
    return () => source.close();
  }, [queries]);
}
