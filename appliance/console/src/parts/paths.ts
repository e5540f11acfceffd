/** Percent-encoded bytes for people: as text where they are UTF-8, else as they are. */
export function readable(encoded: string): string {
  try {
    return decodeURIComponent(encoded);
  } catch {
    return encoded;
  }
}

/** The last part of a path, for people. */
export function nameOf(encoded: string): string {
  return readable(encoded.slice(encoded.lastIndexOf('/') + 1));
}
