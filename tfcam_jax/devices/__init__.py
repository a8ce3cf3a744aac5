"""Where arrays lie, how steps are compiled, and how several processes work together."""
