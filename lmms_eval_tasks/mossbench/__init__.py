"""MOSSBench: harmless questions about images that look harmful."""
