import react from '@vitejs/plugin-react';
import { defineConfig } from 'vitest/config';

// `npm run dev` serves the console with the API of an appliance that runs beside it.
const appliance = process.env.POLLUX_ADDRESS ?? 'https://localhost:8443';

export default defineConfig({
  plugins: [react()],
  // noVNC awaits the decoder's probe at the top level of a module.
  build: { target: 'es2022', chunkSizeWarningLimit: 1500 },
  server: { proxy: { '/api': { target: appliance, secure: false, ws: true, changeOrigin: true } } },
  test: { environment: 'jsdom', setupFiles: ['src/test-setup.ts'] },
});
