"""TFDS builders: the drawn demo, and the layouts of the three tasks' owners."""
