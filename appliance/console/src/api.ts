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
  return (await json(await reach(method, path, body))) as T;
}

/** The answer to a request, if it is a success. */
async function reach(method: string, path: string, body?: unknown): Promise<Response> {
  let reply: Response;
  try {
    reply = await fetch(path, {
      method,
      headers: body === undefined ? {} : { 'content-type': 'application/json' },
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(0, 'unreachable', 'The appliance does not answer', 'Check that it runs, then try again');
  }
  if (reply.ok) return reply;
  const told = (await json(reply)) as { error?: { code: string; message: string; advice: string | null } } | undefined;
  const { code = 'unknown', message = reply.statusText, advice = null } = told?.error ?? {};
  throw new ApiError(reply.status, code, message, advice);
}

async function json(reply: Response): Promise<unknown> {
  const text = await reply.text();
  return text && reply.headers.get('content-type')?.includes('json') ? JSON.parse(text) : undefined;
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
/** Ends all logins of who asks, this one too. */
export const changeOwnPassword = (old: string, fresh: string) => ask<void>('POST', '/api/me/password', { old, new: fresh });

export interface User {
  name: string;
  role: Role;
  created_at: string;
}

export const users = () => ask<{ users: User[] }>('GET', '/api/users').then((reply) => reply.users);
export const addUser = (name: string, role: Role, password: string) => ask<User>('POST', '/api/users', { name, role, password });
/** Changes role, password or both; the user's logins end. */
export const changeUser = (name: string, change: { role?: Role; password?: string }) => ask<User>('PATCH', `/api/users/${name}`, change);
export const removeUser = (name: string) => ask<void>('DELETE', `/api/users/${name}`);

/** The appliance itself, as far as the console tells of it. */
export interface Status {
  version: string;
  /** Where it listens for phones: an address, or all of them, and a port. */
  sync_address: string;
  /** Why nothing is accepted from phones, if so: their journals keep it meanwhile. */
  trouble: string | null;
}

export const status = () => ask<Status>('GET', '/api/status');

export type Standing = 'quarantined' | 'released';
export type TwinState = 'stopped' | 'starting' | 'running' | 'parking' | 'parked' | 'failed';

export interface Twin {
  state: TwinState;
  since: string | null;
  detail: string;
  position: number;
  restarts: number;
  pid: number | null;
  /** What its machine runs on, and if that is slow, why. */
  cpu: string | null;
  /** How its machine ended last, if it ever did by itself since the appliance started. */
  last_end: { at: string; how: string; last_words: string } | null;
  forks: Fork[];
}

/** A copy of a twin, to try things on. */
export interface Fork {
  number: number;
  at: string;
  /** The last event of the phone's log that it knows of. */
  position: number;
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

/** Who uses a phone, and on whose network; empty where nobody has said. */
export interface Assignment {
  person: string;
  department: string;
  carrier: string;
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
  assignment: Assignment;
  standing: Standing;
  reason: string;
  changed_by: string | null;
  changed_at: string;
  registered_at: string;
  last_seen_at: string | null;
  connected: boolean;
  sync: Sync;
  usage_trouble: string | null;
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
export const assign = (id: string, assignment: Assignment) => ask<Assignment>('PUT', `${phoneAt(id)}/assignment`, assignment);

/** A path on the phone, or on its flash. */
export interface Side {
  kind: 'file' | 'directory' | 'link';
  mode: number;
  uid: number;
  gid: number;
  size: number;
  hash: string;
}

export interface Finding {
  path: string;
  position: number;
  kind: 'missed_edit' | 'phone_decay' | 'divergence';
  phone: Side | null;
  flash: Side | null;
  event: { position: number; at: string; by_helpdesk: boolean; text: string } | null;
  outcome: string;
}

export interface Verdict {
  at: string;
  /** Null: it could not be told. */
  equal: boolean | null;
  position: number;
  root: string | null;
  reread: boolean;
  findings: Finding[];
  /** How many more; only the log has them. */
  unnamed: number;
  trouble: string | null;
}

export const verification = (id: string) => ask<{ running: string | null; verdict: Verdict | null }>('GET', `${phoneAt(id)}/verification`);
export const verify = (id: string, how: { reread: boolean; heal: boolean }) => ask<void>('POST', `${phoneAt(id)}/verification`, how);

type TwinAction = 'start' | 'park' | 'stop';
export const actOnTwin = (id: string, action: TwinAction) => ask<Twin>('POST', `${phoneAt(id)}/twin/${action}`);
/** Copies the running twin, or begins one with the phone's files as of a position of its log. */
export const forkTwin = (id: string, position: number | null) => ask<Fork>('POST', `${phoneAt(id)}/twin/forks`, { position });
export const endFork = (id: string, number: number) => ask<void>('DELETE', `${phoneAt(id)}/twin/forks/${number}`);
export const takeLead = (id: string) => ask<Lease>('PUT', `${phoneAt(id)}/drive`);
export const giveLeadBack = (id: string) => ask<void>('DELETE', `${phoneAt(id)}/drive`);
/** Types on the twin, and so on its phone; needs the lead. */
export const typeText = (id: string, text: string) => ask<void>('POST', `${phoneAt(id)}/drive/input`, { actions: [{ text }] });

/** Where the screen of a twin, of one of its forks, or of a demo phone, can be watched: RFB over a WebSocket. */
export const screenAt = (id: string, whose: 'twin' | 'demo' | `twin/forks/${number}`) =>
  `${window.location.origin.replace(/^http/, 'ws')}${phoneAt(id)}/${whose}/screen`;

export interface LogEvent {
  position: number;
  at: string;
  origin: 'phone' | 'helpdesk';
  kind: 'mmi' | 'file' | 'control' | 'stack' | 'command' | 'outcome';
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

/** As of a position of the phone's log, or now. */
const asOf = (position: number | null) => (position === null ? '' : `&position=${position}`);

/** A directory's entries; `path` is percent-encoded as the API gives it. */
export const files = (id: string, path: string, position: number | null) =>
  ask<{ path: string; position: number; entries: FileEntry[] }>('GET', `${phoneAt(id)}/files?path=${path}${asOf(position)}`);
/** Where a file can be downloaded. */
export const fileAt = (id: string, path: string, position: number | null) => `${phoneAt(id)}/files/content?path=${path}${asOf(position)}`;
/** A file's bytes. Throws {@link ApiError}. */
export const content = (id: string, path: string, position: number | null) =>
  reach('GET', fileAt(id, path, position)).then((reply) => reply.blob());

/** A file at one of two positions. */
export interface FileState {
  kind: FileEntry['kind'];
  mode: number;
  uid: number;
  gid: number;
  size: number;
  modified_at: string;
}

export interface Change {
  path: string;
  change: 'added' | 'removed' | 'changed' | 'moved';
  moved_from: string | null;
  before: FileState | null;
  after: FileState | null;
}

/** What is not the same in a phone's files at two positions of its log. */
export const diff = (id: string, from: number, to: number) =>
  ask<{ from: number; to: number; changes: Change[]; more: boolean }>('GET', `${phoneAt(id)}/diff?from=${from}&to=${to}`);

/** Of a search: `*` and `?` in names, some text, a time of the phone's clock as a form gives it. Empty: whatever. */
export interface Wanted {
  pattern: string;
  contents: string;
  at: string;
}

export interface Match {
  path: string;
  kind: FileEntry['kind'];
  size: number;
  modified_at: string;
  /** What is around the text. */
  excerpt: string | null;
}

/** One step of a search of a phone's files; `after` is `next` of the step before. */
export const findStep = (id: string, { pattern, contents, at }: Wanted, after: string | null) => {
  const asked = [
    `pattern=${encodeURIComponent(pattern)}`,
    contents && `contents=${encodeURIComponent(contents)}`,
    at && `at=${encodeURIComponent(new Date(at).toISOString())}`,
    after && `after=${after}`,
  ];
  const query = asked.filter(Boolean).join('&');
  return ask<{ position: number; matches: Match[]; unread: number; next: string | null }>('GET', `${phoneAt(id)}/find?${query}`);
};

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
/** A code as it is made: the only time that it is told. */
export type NewCode = Code & { code: string; ca_sha256: string };

export const newCode = (note: string, hours: number) => ask<NewCode>('POST', '/api/codes', { note, expires_in_hours: hours });
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
  /** Phones with a database that could not be read when it changed last; only of a report. */
  unread?: { phone: string; person: string; trouble: string }[];
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
