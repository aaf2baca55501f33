"""How does a person see that something goes on?  A bar on a terminal, of parts that are counted."""

import os
from collections.abc import Iterable


def progress(parts: Iterable, total: int, what: str = "simulating") -> Iterable:
    """The parts as they come; what takes longer than 2 s has a bar on a terminal, which goes."""
    look = {"desc": what, "delay": 2.0, "leave": False, "disable": None}
    return tqdm_as_shipped()(parts, total=total, **look)


def tqdm_as_shipped():
    """tqdm without the settings TQDM_* of other programs, which it takes when it is imported."""
    settings = {name: os.environ.pop(name) for name in [*os.environ] if name.startswith("TQDM_")}
    try:
        from tqdm import tqdm
    finally:
        os.environ.update(settings)
    return tqdm
