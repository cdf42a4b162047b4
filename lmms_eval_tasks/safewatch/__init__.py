"""SafeWatch-Bench."""
