"""SafeVid-350K, a held-out split of ours."""
