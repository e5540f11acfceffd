// What jsdom lacks and Mantine asks for.
import { vi } from 'vitest';

window.matchMedia = vi.fn().mockImplementation((query: string) => ({
  matches: false,
  media: query,
  addEventListener: () => {},
  removeEventListener: () => {},
}));

window.ResizeObserver = class {
  observe() {}
  unobserve() {}
  disconnect() {}
};
