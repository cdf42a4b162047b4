"""FigStep: harmful instructions as typographic images."""
