"""recomputed: remember what a function was given instead of all that it did."""

from tinydiff.autograd.tensor import Tensor, _state, recording
from tinydiff.backend import array_module


def recomputed(f, *args):
    """f(*args), of which only the arguments are kept; backward runs f once more.

    f makes one Tensor of Tensors and constants, the same one each time, and may use parameters of
    its own. A chain of n such calls keeps n results and, at any time, the insides of one.
    Chen et al. 2016 (arXiv 1604.06174) §3
    """
    y = f(*args)
    if not y.requires_grad:                               # nothing would be played back
        return y

    def vjp(dy):
        leaves = [Tensor(a.data, a.requires_grad) if type(a) is Tensor else a for a in args]
        before, _state.recording = recording(), True      # backward may stand in a no_grad
        try:
            f(*leaves).backward(dy)
        finally:
            _state.recording = before
        return [lambda leaf=leaf: grad_or_zeros(leaf) for leaf in leaves]

    out = Tensor(y.data, requires_grad=True)              # y itself, and its memory, end here
    out._parents, out._vjp = args, vjp
    return out


def grad_or_zeros(leaf):
    """What arrived at a leaf; nothing did if f made no use of it."""
    return array_module(leaf.data).zeros_like(leaf.data) if leaf.grad is None else leaf.grad
