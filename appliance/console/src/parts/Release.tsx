import { useQueryClient } from '@tanstack/react-query';

import { release, type Phone } from '../api';
import { Confirm } from './Confirm';

/** Lets a phone out of quarantine, after asking. */
export function Release({ phone, onClose }: { phone: Phone; onClose: () => void }) {
  const queries = useQueryClient();
  const run = async (reason: string) => {
    await release(phone.id, reason);
    await Promise.all([queries.invalidateQueries({ queryKey: ['phones'] }), queries.invalidateQueries({ queryKey: ['phone', phone.id] })]);
  };
  return (
    <Confirm title={`Release ${phone.serial}?`} action="Release" color="orange" withReason onConfirm={run} onClose={onClose}>
      It may then enrol and send its log, and its twin starts as soon as its files are here. Check that its serial is one of yours.
    </Confirm>
  );
}
