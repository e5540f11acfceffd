/** Letters and digits that nobody takes for another. */
const ALPHABET = 'abcdefghjkmnpqrstuvwxyz23456789';

/** The least that the appliance takes. */
export const PASSWORD_CHARS_MIN = 10;

/** A password that is strong (74 bits) and can be read out over the phone. */
export function newPassword(): string {
  let letters = '';
  while (letters.length < 15) {
    const byte = crypto.getRandomValues(new Uint8Array(1))[0]!;
    // Beyond the last whole alphabet, some letters would be likelier than others.
    if (byte < 256 - (256 % ALPHABET.length)) letters += ALPHABET[byte % ALPHABET.length];
  }
  return letters.match(/.{5}/g)!.join('-');
}
