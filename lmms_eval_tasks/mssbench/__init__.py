"""MSSBench: the same request, safe or unsafe by the scene."""
