"""Groups over several benchmarks."""
