import react from '@vitejs/plugin-react';
import { defineConfig } from 'vitest/config';

// `npm run dev` serves the console with the API of an appliance that runs beside it.
const appliance = process.env.POLLUX_ADDRESS ?? 'https://localhost:8443';

export default defineConfig({
  plugins: [react()],
  // noVNC awaits the decoder's probe at the top level of a module.
  // The first browsers that know light-dark() by themselves: what it is turned into for older ones does not heed Mantine's colour scheme.
  build: { target: 'es2022', cssTarget: ['chrome123', 'firefox120', 'safari17.5'], chunkSizeWarningLimit: 1500 },
  // The appliance takes only what comes from pages of its own.
  server: { proxy: { '/api': { target: appliance, secure: false, ws: true, changeOrigin: true, headers: { origin: appliance } } } },
  // A zone with summer time, so that days are not all of 24 hours.
  test: { environment: 'jsdom', setupFiles: ['src/test-setup.ts'], testTimeout: 120_000, env: { TZ: 'Europe/Berlin' } },
});
