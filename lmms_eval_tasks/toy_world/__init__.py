"""The toy world: generated clips and questions on which a model of half a million weights shows what each training stage does."""
