"""The report on a checkpoint: regions that carry a margin, pictures, and the page."""
