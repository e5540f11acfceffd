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

export type Standing = 'quarantined' | 'released';
export type TwinState = 'stopped' | 'starting' | 'running' | 'parking' | 'parked' | 'failed';

export interface Twin {
  state: TwinState;
  since: string | null;
  detail: string;
  position: number;
  restarts: number;
  pid: number | null;
}

export interface Lease {
  operator: string;
  since: string;
  expires_at: string;
}

export interface Proof {
  equal: boolean;
  position: number;
  at: string;
  phone_root: string;
  flash_root: string;
}

export interface Sync {
  position: number;
  applied: number;
  root: string | null;
  complete: boolean;
  proof: Proof | null;
  trouble: string | null;
}

export interface Phone {
  id: string;
  serial: string;
  model: string;
  os: string;
  os_version: string;
  image: string;
  architecture: string;
  agent_version: string;
  standing: Standing;
  reason: string;
  changed_by: string | null;
  changed_at: string;
  registered_at: string;
  last_seen_at: string | null;
  connected: boolean;
  sync: Sync;
  twin: Twin;
  lease: Lease | null;
  conflicts: number;
  demo_screen: boolean;
}

const phoneAt = (phone: string) => `/api/phones/${encodeURIComponent(phone)}`;

export const phones = () => ask<{ phones: Phone[] }>('GET', '/api/phones').then((reply) => reply.phones);
export const phone = (id: string) => ask<Phone>('GET', phoneAt(id));
export const release = (id: string, reason: string) => ask<Phone>('POST', `${phoneAt(id)}/release`, { reason });
export const quarantine = (id: string, reason: string) => ask<Phone>('POST', `${phoneAt(id)}/quarantine`, { reason });
export const prove = (id: string) => ask<void>('POST', `${phoneAt(id)}/prove`);

export type TwinAction = 'start' | 'park' | 'stop';
export const actOnTwin = (id: string, action: TwinAction) => ask<Twin>('POST', `${phoneAt(id)}/twin/${action}`);
export const takeLead = (id: string) => ask<Lease>('PUT', `${phoneAt(id)}/drive`);
export const giveLeadBack = (id: string) => ask<void>('DELETE', `${phoneAt(id)}/drive`);

/** Where the screen of a twin, or of a demo phone, can be watched: RFB over a WebSocket. */
export const screenAt = (id: string, whose: 'twin' | 'demo') => `wss://${window.location.host}${phoneAt(id)}/${whose}/screen`;

export interface LogEvent {
  position: number;
  at: string;
  origin: 'phone' | 'helpdesk';
  kind: 'mmi' | 'file' | 'control' | 'command' | 'outcome';
  summary: string;
}

/** Events after a position, oldest first; without it, the latest ones. */
export const log = (id: string, after: number | null, limit = 200) =>
  ask<{ events: LogEvent[]; last: number }>('GET', `${phoneAt(id)}/log?limit=${limit}${after === null ? '' : `&after=${after}`}`);

export interface FileEntry {
  name: string;
  path: string;
  kind: 'file' | 'directory' | 'link' | string;
  mode: number;
  uid: number;
  gid: number;
  size: number;
  modified_at: string;
  target: string | null;
}

/** A directory's entries; `path` is percent-encoded as the API gives it. */
export const files = (id: string, path: string) =>
  ask<{ path: string; position: number; entries: FileEntry[] }>('GET', `${phoneAt(id)}/files?path=${path}`);
export const fileAt = (id: string, path: string) => `${phoneAt(id)}/files/content?path=${path}`;

export interface Conflict {
  id: number;
  at: string;
  path: string;
  our_position: number;
  text: string;
  dismissed: boolean;
}

export const conflicts = (id: string) =>
  ask<{ conflicts: Conflict[] }>('GET', `${phoneAt(id)}/conflicts`).then((reply) => reply.conflicts);
export const dismissConflict = (id: string, conflict: number) => ask<void>('DELETE', `${phoneAt(id)}/conflicts/${conflict}`);

export interface Code {
  id: string;
  note: string;
  by: string;
  created_at: string;
  expires_at: string;
  state: 'open' | 'used' | 'expired';
  used_by: string | null;
  used_at: string | null;
}

export const codes = () => ask<{ codes: Code[] }>('GET', '/api/codes').then((reply) => reply.codes);
export const newCode = (note: string) => ask<Code & { code: string; ca_sha256: string }>('POST', '/api/codes', { note });
export const deleteCode = (id: string) => ask<void>('DELETE', `/api/codes/${id}`);

export interface Report {
  name: string;
  title: string;
  about: string;
  chart: { kind: 'bar'; measures: string[]; by: string[] } | null;
  records: { table: string; by: string[] }[];
}

export type Cell = string | number | boolean | null;

export interface Table {
  columns: { name: string; type: 'text' | 'number' | 'time' | 'boolean' }[];
  rows: Cell[][];
  truncated: boolean;
}

export interface Period {
  from: string;
  to: string;
}

export const reports = () => ask<{ reports: Report[] }>('GET', '/api/reports').then((reply) => reply.reports);
export const runReport = (name: string, period: Period) =>
  ask<Table>('GET', `/api/reports/${name}?${new URLSearchParams({ ...period })}`);
/** The records behind one row: those of `table` that agree with `row` in what the report names. */
export const reportRecords = (name: string, period: Period, table: string, row: Record<string, string>) =>
  ask<Table>('GET', `/api/reports/${name}/records/${table}?${new URLSearchParams({ ...row, ...period })}`);
