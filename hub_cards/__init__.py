"""Publishing to the Hub: cards, checks and uploads of models, datasets and results."""
