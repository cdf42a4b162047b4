"""HoliSafe-Bench with our verdicts."""
