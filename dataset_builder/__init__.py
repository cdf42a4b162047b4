"""A safety set from your own videos, stage by stage: each stage a function over rows."""
