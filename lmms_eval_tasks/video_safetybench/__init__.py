"""Video-SafetyBench."""
