"""Module: a plain class whose parameters are found by walking its attributes."""

import numpy as np

from tinydiff.autograd import Tensor
from tinydiff.backend import alongside, to_device
from tinydiff.kernels import bfloat16, elementwise


class Module:
    """Anything that holds parameters: Tensors, Modules, or lists of them, as attributes.

    A parameter's name is its path: "down.0.conv1.w".
    """

    def parameters(self):
        """{path: Tensor} in the order in which the attributes were made."""
        return dict(walk(self, ""))

    def count(self):
        """How many numbers can be learned."""
        return sum(p.data.size for p in self.parameters().values())

    def load(self, arrays):
        """Take every parameter from {path: array}.

        Raises ValueError naming the first path that is missing, left over, or of another shape.
        """
        own = self.parameters()
        for name in [*own, *arrays]:
            if name not in arrays or name not in own:
                where = "the weights" if name in own else "the model"
                raise ValueError(f"load: {name} is missing from {where}; "
                                 "the weights belong to another configuration")
            if own[name].shape != np.shape(arrays[name]):
                raise ValueError(f"load: {name} has shape {np.shape(arrays[name])}, "
                                 f"the model expects {own[name].shape}")
        for name, p in own.items():
            p.data[...], p.half = alongside(arrays[name], p.data), None

    def to(self, device):
        """The same module with its parameters on "cpu" or "cuda"."""
        for p in self.parameters().values():
            p.data, p.half = to_device(p.data, device), None
        return self

    def astype(self, dtype):
        """The same module with parameters of another dtype; float64 is for checking gradients."""
        for p in self.parameters().values():
            p.data, p.half = p.data.astype(dtype), None
        return self

    def halve(self):
        """Keep each weight in bf16, too, so that no call has to round it, while none changes."""
        for p in self.parameters().values():
            if p.ndim > 1:
                p.half = elementwise.cast(p.data, bfloat16())


def parameter(array):
    """A Tensor to be learned: float32 unless changed by `Module.astype`."""
    return Tensor(np.asarray(array, np.float32), requires_grad=True)


def walk(value, path):
    """Yield (path, Tensor) for every parameter in `value`, which stands at `path`."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Module):
        for name, inner in vars(value).items():
            yield from walk(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, (list, tuple)):
        for i, inner in enumerate(value):
            yield from walk(inner, f"{path}.{i}" if path else str(i))
