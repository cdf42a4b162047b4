"""Models and their templates; these files are published beside the weights."""
