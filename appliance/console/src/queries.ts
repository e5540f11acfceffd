import { MutationCache, QueryCache, QueryClient } from '@tanstack/react-query';

import { ApiError } from './api';

/** What the console knows of the appliance, and what happens when asking fails. */
export function newQueries(): QueryClient {
  // A login that has ended is found out by whatever is asked next: then it is asked who we are, and the answer leads to the login page.
  const refused = (error: Error) => {
    const known = queries.getQueryData(['me']) !== undefined;
    if (known && error instanceof ApiError && error.status === 401) void queries.invalidateQueries({ queryKey: ['me'] });
  };
  const queries: QueryClient = new QueryClient({
    queryCache: new QueryCache({ onError: (error, query) => query.queryKey[0] !== 'me' && refused(error) }),
    mutationCache: new MutationCache({ onError: refused }),
    defaultOptions: {
      queries: {
        // A refusal stays a refusal; only an appliance out of reach is worth asking again.
        retry: (count, error) => error instanceof ApiError && error.status === 0 && count < 3,
      },
    },
  });
  return queries;
}
