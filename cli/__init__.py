"""videosafety: measure the safety of video LLMs, and make them safer. Each top-level folder of the project is a sub-package."""

from importlib.metadata import version

__version__ = version("videosafety")
