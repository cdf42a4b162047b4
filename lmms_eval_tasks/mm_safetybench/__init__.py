"""MM-SafetyBench."""
