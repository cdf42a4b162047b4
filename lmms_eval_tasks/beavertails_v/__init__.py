"""BeaverTails-V."""
