// What jsdom lacks and the console asks for.
import { configure } from '@testing-library/react';
import { vi } from 'vitest';

// A busy machine is slow, and no test is about speed.
configure({ asyncUtilTimeout: 60_000 });

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

Element.prototype.scrollIntoView = () => {};
