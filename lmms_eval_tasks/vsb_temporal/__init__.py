"""VSB-Open over time."""
