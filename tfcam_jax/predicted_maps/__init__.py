"""Maps for images that nobody annotated, by a network that learned them from the annotated ones."""
