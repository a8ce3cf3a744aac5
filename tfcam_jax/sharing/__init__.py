"""Publishing a run: the folder that others restore it from, its model card and pictures, and the way to the Hub."""
