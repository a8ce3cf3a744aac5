"""What is measured of predictions and of maps, in NumPy and JAX, and the tables that show it."""
