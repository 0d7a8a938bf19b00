"""A ladder: the rungs of one operation by name, each imported when it is first looked at."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from importlib.util import find_spec


class Ladder(Mapping):
    """{idea: module} of package's files rungN_idea.py, N = 0, 1, …

    The ideas in `plain` need NumPy alone; those in `compiled` also Numba, which compiles them. The
    rungs in `device` are a GPU's; given NumPy arrays they are stepped through on the CPU.
    """

    def __init__(self, package, plain, compiled, device=""):
        self.package = package
        self.plain, self.compiled, self.device = plain.split(), compiled.split(), device.split()
        self.ideas = self.plain + self.compiled + self.device

    def __getitem__(self, idea):
        if idea not in self.ideas:
            raise KeyError(idea)
        return import_module(f"{self.package}.rung{self.ideas.index(idea)}_{idea}")

    def __iter__(self):
        return iter(self.ideas)

    def __len__(self):
        return len(self.ideas)


@cache
def can_compile():
    """Whether Numba and llvmlite are installed."""
    return all(find_spec(name) for name in ("numba", "llvmlite"))
