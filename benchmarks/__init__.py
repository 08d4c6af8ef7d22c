"""Speed, measured by 'make bench', which writes docs/performance.md."""
