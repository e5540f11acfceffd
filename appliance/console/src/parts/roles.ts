import type { Role } from '../api';

/** The roles, and what each may do [appliance/src/identity/users.rs]. */
export const ROLES: Record<Role, { label: string; about: string; color: string }> = {
  helpdesk: { label: 'Help desk', about: 'Watches and drives twins, reads logs and files', color: 'teal' },
  mai: { label: 'Usage intelligence', about: 'Sees usage reports and the records behind them', color: 'orange' },
  admin: { label: 'Administrator', about: 'Everything, among it users, enrolment and quarantine', color: 'indigo' },
};
