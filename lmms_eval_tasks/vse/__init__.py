"""VideoSafetyEval: the authors' set, for those who have it."""
