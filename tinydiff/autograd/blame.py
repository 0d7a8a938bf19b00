"""first_bad: where in a graph a number was lost."""


from tinydiff.autograd.tensor import Tensor
from tinydiff.backend import array_module


def first_bad(root, names):
    """The layer behind `root` whose result is the first with a NaN or infinity, as words.

    names {path: Tensor} are the model's parameters; the graph must not have been played back yet.
    """
    paths = {id(p): path for path, p in names.items()}
    for node in producers_first(root):
        if not array_module(node.data).isfinite(node.data).all():
            if id(node) in paths:
                return f"the weights {paths[id(node)]}"
            own = sorted((p for p in node._parents if id(p) in paths), key=lambda p: -p.ndim)
            op = node._vjp.__qualname__.split(".")[0] if node._vjp else "an input"
            return f"{op} with {paths[id(own[0])]}" if own else op
    return "the loss itself"


def producers_first(root):
    """Every Tensor behind `root`, each after all that it was computed from."""
    order, seen, stack = [], set(), [(root, False)]
    while stack:
        node, expanded = stack.pop()
        if expanded:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((p, False) for p in reversed(node._parents) if isinstance(p, Tensor))
    return order
