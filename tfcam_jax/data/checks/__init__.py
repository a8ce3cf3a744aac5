"""What `launch/prepare.py` says of a data set: files, leakage, near-duplicates, notes."""
