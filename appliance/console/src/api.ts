// The appliance's HTTP API, as far as the console uses it. Shapes follow /api/openapi.json.

/** An answer that was not a success: what failed, and what a person can do about it. */
export class ApiError extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly advice: string | null,
  ) {
    super(message);
  }
}

/** Asks the API; the reply's JSON, or undefined where there is none. Throws {@link ApiError}. */
export async function ask<T>(method: string, path: string, body?: unknown): Promise<T> {
  let reply: Response;
  try {
    reply = await fetch(path, {
      method,
      headers: body === undefined ? {} : { 'content-type': 'application/json' },
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, 'unreachable', 'The appliance does not answer.', 'Check that it runs, then try again.');
  }
  const text = await reply.text();
  const json: unknown = text && reply.headers.get('content-type')?.includes('json') ? JSON.parse(text) : undefined;
  if (reply.ok) return json as T;
  const error = (json as { error?: { code: string; message: string; advice: string | null } } | undefined)?.error;
  throw new ApiError(reply.status, error?.code ?? 'unknown', error?.message ?? reply.statusText, error?.advice ?? null);
}

export type Role = 'helpdesk' | 'admin' | 'mai';

export interface Me {
  user: string;
  role: Role;
  expires_at: string;
}

export const me = () => ask<Me>('GET', '/api/me');
export const logIn = (user: string, password: string) => ask<Me>('POST', '/api/login', { user, password });
export const logOut = () => ask<void>('POST', '/api/logout');
