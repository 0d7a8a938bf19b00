"""What a published config.json says, read key by key; wrong values are refused by file and key."""

from tinydiff.pretrained.tensors import named

MOST = 1 << 14                                            # of any size: no memory for nonsense


class Options:
    """{key: value} of a config, `theirs`, in the `file` that messages name.

    Each method gives one key's value, or `default`, which its class has, where the key is absent;
    ValueError for a value that is not supported. Keys that nobody asks for change nothing.
    """

    def __init__(self, theirs, file):
        self.theirs, self.file = theirs, file

    def take(self, key, default, fits, expected):
        value = self.theirs.get(key, default)
        if not fits(value):
            raise ValueError(f"{self.file}: {key} {named(value)} is not supported; "
                             f"expected {expected}")
        return value

    def whole(self, key, default, most=MOST):
        return self.take(key, default, lambda n: type(n) is int and 0 < n <= most,
                         f"a whole number from 1 to {most}")

    def wholes(self, key, default, most=MOST):
        """A tuple of at least one and at most 16."""
        return tuple(self.take(key, default, lambda ns: is_list(ns) and all(
            type(n) is int and 0 < n <= most for n in ns), f"whole numbers from 1 to {most}"))

    def maybe(self, key, default):
        """A whole number, or None."""
        return None if self.theirs.get(key, default) is None else self.whole(key, default)

    def each(self, key, default, count, most=MOST):
        """A whole number, or a tuple of so many."""
        if not is_list(self.theirs.get(key, default)):
            return self.whole(key, default, most)
        self.take(key, None, lambda ns: len(ns) == count, f"a number for each of {count} blocks")
        return self.wholes(key, None, most)

    def number(self, key, default):
        return self.take(key, default, lambda x: (type(x) in (int, float) and abs(x) < 1e30)
                         or x is default, "a number")

    def positive(self, key, default):
        return self.take(key, default, lambda x: type(x) in (int, float) and 0 < x < 1e30,
                         "a number above 0")

    def flag(self, key, default):
        return self.take(key, default, lambda on: type(on) is bool, "true or false")

    def choice(self, key, default, *supported):
        return self.take(key, default, lambda value: value in supported,
                         " or ".join(map(repr, supported)))

    def choices(self, key, default, supported, count):
        """A tuple of so many."""
        return tuple(self.take(key, default, lambda names: is_list(names) and len(names) == count
                               and all(name in supported for name in names),
                               f"{count} of {', '.join(supported)}"))


def is_list(value):
    return isinstance(value, (list, tuple)) and 0 < len(value) <= 16
