"""How often Python looks for garbage in a process that trains."""

import gc


def collect_rarely() -> None:
    """Looks for cycles of objects that nobody holds after 50,000 new objects, not 700, and rarely through old ones.

    Imports and the tracing of a network make hundreds of thousands of objects that stay; to look through them again and
    again takes a fifth of that time. What is in no cycle is freed at once all the same.
    """
    gc.set_threshold(50_000, 20, 100)
