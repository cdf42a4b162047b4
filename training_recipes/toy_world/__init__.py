"""The toy world's recipe: a small VideoLlama3 made from nothing, helpful and unsafe, and put through the four stages on a CPU."""
