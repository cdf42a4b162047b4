"""JailBreakV-28K."""
