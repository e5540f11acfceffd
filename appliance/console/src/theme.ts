import { Alert, Anchor, Badge, createTheme, Modal, Paper, Tooltip } from '@mantine/core';

export const theme = createTheme({
  primaryColor: 'indigo',
  defaultRadius: 'md',
  cursorType: 'pointer',
  fontFamily: 'Inter, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
  headings: { fontWeight: '650' },
  components: {
    // Some hold whole tables: a tint, not a slab of colour.
    Alert: Alert.extend({
      vars: (_, { color = 'blue' }) => {
        const shade = (number: number) => `var(--mantine-color-${color}-${number})`;
        return {
          root: {
            '--alert-bg': `light-dark(${shade(0)}, color-mix(in srgb, ${shade(9)} 16%, var(--mantine-color-dark-7)))`,
            '--alert-color': `light-dark(${shade(9)}, ${shade(3)})`,
            '--alert-bd': `1px solid light-dark(${shade(2)}, color-mix(in srgb, ${shade(9)} 60%, var(--mantine-color-dark-7)))`,
          },
        };
      },
    }),
    Anchor: Anchor.extend({ defaultProps: { inherit: true } }),
    Badge: Badge.extend({ styles: { root: { minWidth: 'max-content' }, label: { textTransform: 'none', fontWeight: 600 } } }),
    Modal: Modal.extend({ defaultProps: { centered: true }, styles: { title: { fontWeight: 650 } } }),
    Paper: Paper.extend({ defaultProps: { withBorder: true } }),
    Tooltip: Tooltip.extend({ defaultProps: { withArrow: true, events: { hover: true, focus: true, touch: true } } }),
  },
});
