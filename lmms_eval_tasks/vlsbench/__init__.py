"""VLSBench: harm that only the image shows."""
