"""VLGuard."""
