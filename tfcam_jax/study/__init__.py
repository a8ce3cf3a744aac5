"""The comparison study: its plan, the runs, what they found, and how that is told."""
