"""XSTest."""
