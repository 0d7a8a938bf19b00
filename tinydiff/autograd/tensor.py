"""Tensor, @op and backward: the whole of reverse-mode differentiation.

An op is a function from arrays to (result, vjp). `vjp`, the vector-Jacobian product, turns the
gradient dy of the result into one gradient for each positional argument: an array, or a function
that computes it, called only if somebody needs it. Under @op the function takes Tensors as well as
arrays, and every result remembers its arguments and its vjp; `backward` plays them back from the
last to the first.
"""

from contextlib import contextmanager
from functools import wraps
from threading import local

import numpy as np

from tinydiff.backend import alongside, array_module
from tinydiff.kernels import elementwise

_state = local()                                      # each thread records, or not, by itself


class Tensor:
    """An array that can say how it was computed.

    data (any shape); grad (the same shape) after `backward`, where requires_grad was asked for.
    half: of some parameters, a copy of data in bf16 kept by who moves them (`optim.Flat.halve`).
    """

    __slots__ = ("data", "grad", "half", "requires_grad", "_parents", "_vjp")
    __array_priority__ = 100                          # array + Tensor is our add, not NumPy's
    __array_ufunc__ = None

    def __init__(self, data, requires_grad=False):
        self.data = data if type(data) is np.ndarray else array_module(data).asarray(data)
        if requires_grad and self.data.dtype.kind not in "fV":           # V: bf16
            raise ValueError(f"Tensor: a gradient needs floats, got {self.data.dtype}; "
                             "write 1.0 for 1")
        self.grad = self.half = None
        self.requires_grad = requires_grad
        self._parents = ()
        self._vjp = None

    shape = property(lambda self: self.data.shape)
    ndim  = property(lambda self: self.data.ndim)
    dtype = property(lambda self: self.data.dtype)

    def __len__(self):
        return len(self.data)

    def __array__(self, *_, **__):
        raise TypeError("expected an array, got a Tensor; its array is x.data")

    def __repr__(self):
        return f"Tensor({self.data!r}{', requires_grad=True' * self.requires_grad})"

    def detach(self):
        """The same numbers with no memory of how they came about."""
        return Tensor(self.data)

    def item(self):
        """The one number of a Tensor of size 1, as a Python float."""
        return self.data.item()

    def backward(self, dy=None):
        """Add ∂(Σ self · dy)/∂leaf to the `grad` of every leaf this Tensor was computed from.

        dy has self's shape and may be left out when self holds one number. The graph is freed on
        the way: RuntimeError if any part of it was played back before.
        """
        backward(self, dy)


def op(forward):
    """Lift `forward(*arrays, **options) -> (y, vjp)` from arrays to Tensors.

    Positional arguments may carry gradients; keywords are options and never do.
    """
    positions = forward.__code__.co_argcount

    @wraps(forward)
    def lifted(*args, **options):
        args += (None,) * (positions - len(args))     # what was left out
        arrays, traced = [], False
        for a in args:
            if type(a) is Tensor:
                arrays.append(a.data)
                traced = traced or a.requires_grad
            else:
                arrays.append(a)                      # a constant: array, number or None
        for name, option in options.items():
            if type(option) is Tensor:
                raise TypeError(f"{forward.__name__}: give Tensors by position, {name}= is one; "
                                "keywords are options")
        y, vjp = forward(*arrays, **options)
        out = Tensor(y)
        if traced and recording():
            out.requires_grad, out._parents, out._vjp = True, args, vjp
        return out
    return lifted


def backward(root, dy=None):
    """Play the graph behind `root` back, consumers before producers.

    A node is ready when everything computed from it has sent its share; so each vjp runs once.
    """
    if not root.requires_grad:
        raise RuntimeError("backward: this Tensor depends on nothing that requires a gradient")
    grads = {root: seed(root, dy)}
    sums = set()                                      # whose gradient is an array of our own making
    waiting = consumers(root)
    ready = [root]
    while ready:
        node = ready.pop()
        dy = grads.pop(node)
        if node._vjp is None:                         # a leaf: the gradient has arrived
            node.grad = (as_grad(dy, node) if node.grad is None
                         else elementwise.add_into(node.grad, dy))    # into the flat buffer
            continue
        for parent, g in zip(node._parents, node._vjp(dy), strict=True):
            if type(parent) is Tensor and parent.requires_grad:
                g = unbroadcast(g() if callable(g) else g, parent.data.shape)
                if parent in sums:
                    grads[parent] = elementwise.add_into(grads[parent], g)
                elif parent in grads:
                    grads[parent] = elementwise.add(grads[parent], g)
                    sums.add(parent)
                else:
                    grads[parent] = g
                waiting[parent] -= 1
                if not waiting[parent]:
                    del waiting[parent]
                    ready.append(parent)
        node._parents, node._vjp = (), played_back    # free what the forward pass had kept


def consumers(root):
    """How many results were computed from each node behind `root`, found without recursion."""
    count = {}
    stack = [root]
    while stack:
        node = stack.pop()
        if node._vjp is played_back:
            raise RuntimeError("backward: this graph was played back and freed; compute it again")
        for parent in node._parents:
            if type(parent) is Tensor and parent.requires_grad:
                if parent in count:
                    count[parent] += 1
                else:
                    count[parent] = 1
                    stack.append(parent)
    return count


def played_back(dy):
    """Stands where a vjp was, once it has been used."""


def seed(root, dy):
    """The gradient to start from: dy, or 1 for a single number."""
    if dy is None:
        if root.data.size != 1:
            raise ValueError(f"backward: a Tensor of shape {root.shape} needs dy of that shape")
        return array_module(root.data).ones_like(root.data)
    dy = alongside(dy.data if type(dy) is Tensor else dy, root.data).astype(root.dtype, copy=False)
    if dy.shape != root.shape:
        raise ValueError(f"backward: dy has shape {dy.shape}, the Tensor has {root.shape}")
    return dy


def unbroadcast(g, shape):
    """Sum g over the axes along which an argument of `shape` was stretched."""
    if g.shape == shape:
        return g
    ahead = g.ndim - len(shape)
    axes = tuple(range(ahead)) + tuple(ahead + i for i, n in enumerate(shape)
                                       if n == 1 and g.shape[ahead + i] != 1)
    return g.sum(axis=axes).reshape(shape)


def as_grad(dy, leaf):
    """A copy of dy in the leaf's dtype, which later gradients are added into."""
    return array_module(leaf.data).array(dy, leaf.dtype)


def recording():
    """False inside `no_grad`."""
    return getattr(_state, "recording", True)


@contextmanager
def no_grad():
    """Compute without remembering:  with no_grad(): …"""
    before = recording()
    _state.recording = False
    try:
        yield
    finally:
        _state.recording = before
