"""VA-SafetyBench."""
