# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · Autograd: how a program learns from its mistakes
#
# Training asks one question, again and again: *if I nudge this weight a little, by how much does
# the loss change?* The answer is a derivative, and there are a million weights. Here we build, in
# forty lines, the machine that answers for all of them at once, and find that the real one is
# hardly longer.
#
# Source read here: [autograd/tensor.py](../tinydiff/autograd/tensor.py),
# [autograd/elementwise.py](../tinydiff/autograd/elementwise.py),
# [autograd/check.py](../tinydiff/autograd/check.py)

# %%
import os
from inspect import getsource

import numpy as np

import tinydiff as td
from tinydiff import autograd as ag, viz

FAST = bool(os.environ.get("TINYDIFF_FAST"))
rng = np.random.default_rng(0)

# %% [markdown]
# ## A derivative is a slope you could measure
#
# Move x by a small h to either side and see how far y moves: (f(x + h) − f(x − h)) / 2h. That is
# true for every function, and hopeless for a million weights: two runs of the network for each of
# them.

# %%
def f(x):
    return x * np.tanh(x)


h = 1e-6
measured = (f(1.5 + h) - f(1.5 - h)) / (2 * h)
calculus = np.tanh(1.5) + 1.5 * (1 - np.tanh(1.5) ** 2)        # the product rule
print(f"measured {measured:.9f}, by the rules of calculus {calculus:.9f}")

# %% [markdown]
# ## The idea: every result remembers how to send blame back
#
# A program is a chain of small operations. For each of them the rule of calculus is one line:
# *given the gradient dy of the result, what are the gradients of the arguments?* That function is
# called the **vjp** (vector–Jacobian product). If every result keeps its arguments and its vjp,
# the whole gradient comes from walking backwards once.
#
# Here is all of it, for arrays, with four operations.

# %%
class Node:
    """An array that remembers its parents, and how to send its gradient to them."""

    def __init__(self, data, parents=(), vjp=None):
        self.data, self.parents, self.vjp = np.asarray(data, float), parents, vjp
        self.grad = np.zeros_like(self.data)

    def __add__(self, other):                                  # y = a + b
        return Node(self.data + other.data, (self, other), lambda dy: (dy, dy))

    def __mul__(self, other):                                  # y = a · b
        return Node(self.data * other.data, (self, other),
                    lambda dy: (dy * other.data, dy * self.data))

    def __matmul__(self, other):                               # y = a b, matrices
        return Node(self.data @ other.data, (self, other),
                    lambda dy: (dy @ other.data.T, self.data.T @ dy))

    def tanh(self):                                            # y = tanh(a)
        y = np.tanh(self.data)
        return Node(y, (self,), lambda dy: (dy * (1 - y * y),))

    def backward(self):
        """∂(sum of self) / ∂node for every node behind, consumers before producers."""
        order, seen = [], set()

        def visit(node):
            if id(node) not in seen:
                seen.add(id(node))
                for parent in node.parents:
                    visit(parent)
                order.append(node)                             # after all that it was computed from

        visit(self)
        self.grad = np.ones_like(self.data)
        for node in reversed(order):
            if node.vjp:
                for parent, g in zip(node.parents, node.vjp(node.grad)):
                    parent.grad = parent.grad + g              # blame from several sides adds up


# %% [markdown]
# Ours against the package's, on a small network y = tanh(x w + b) · c, everything at once:

# %%
arrays = {"x": rng.standard_normal((5, 3)), "w": rng.standard_normal((3, 4)),
          "b": rng.standard_normal((5, 4)), "c": rng.standard_normal((5, 4))}


def network(x, w, b, c, tanh):
    return tanh(x @ w + b) * c


nodes = {name: Node(a) for name, a in arrays.items()}
network(**nodes, tanh=Node.tanh).backward()

tensors = {name: td.Tensor(a, requires_grad=True) for name, a in arrays.items()}
network(**tensors, tanh=ag.tanh).sum().backward()

for name in arrays:
    assert np.allclose(nodes[name].grad, tensors[name].grad, rtol=1e-12)
    print(f"{name}: gradient {nodes[name].grad.shape}, equal")

# %% [markdown]
# ## Why the order matters
#
# A value may be used twice. Below, `a` feeds two branches which meet again: a diamond. The node
# `a` may pass its gradient on only when *both* branches have reported, or half of the blame gets
# lost.

# %%
a = td.Tensor(np.array(3.0), requires_grad=True)
b = a + a
c = b * b                                                      # (2a)², so dc/da = 8a = 24
diagram = viz.mermaid(c, {"a": a})
c.backward()

ours = Node(3.0)
twice = ours + ours
(twice * twice).backward()
assert a.grad == ours.grad == 24
diagram

# %% [markdown]
# Our `visit` calls itself, so a chain of five thousand operations would overflow Python's stack.
# The package counts instead: how many consumers does a node still wait for? At zero it is ready.
# This is all of it:

# %%
print(getsource(td.autograd.tensor.backward))

# %% [markdown]
# ## An op: forward and backward face each other
#
# An operation in tinydiff is a function from arrays to *(result, vjp)*. `@op` lifts it to Tensors.
# What backward needs, the closure keeps: here `s` and `y`. Read the second line as a formula: y =
# x · σ(x), so dy/dx = σ + y (1 − σ).

# %%
print(getsource(ag.silu))

# %% [markdown]
# So you can add one. The logarithm of 1 + eˣ is called *softplus*; its slope is σ(x):

# %%
@ag.op
def softplus(x):
    """log(1 + eˣ), without overflow"""
    return np.logaddexp(x, 0), lambda dy: (dy / (1 + np.exp(-x)),)


error = td.gradcheck(softplus, rng.standard_normal((4, 5)))
print(f"largest relative error against measured slopes: {error:.1e}")
assert error < 1e-8

# %% [markdown]
# `gradcheck` is our first measurement, done for every entry of every argument. It is slow, simple,
# and knows nothing of your vjp: that makes it an oracle. A wrong formula does not survive it.

# %%
@ag.op
def softplus_wrong(x):
    return np.logaddexp(x, 0), lambda dy: (dy / (1 + np.exp(x)),)          # a sign got lost


print(f"with one sign lost: {td.gradcheck(softplus_wrong, rng.standard_normal((4, 5))):.2f}")
assert td.gradcheck(softplus_wrong, rng.standard_normal((4, 5))) > 0.1

# %% [markdown]
# ## Broadcasting, undone
#
# In `x @ w + b` one bias row serves five rows of x. Stretching copies b forwards; so backwards the
# copies' gradients are summed. This happens in one place (`unbroadcast`), not in every op.

# %%
x, bias = rng.standard_normal((5, 4)), td.Tensor(np.zeros(4), requires_grad=True)
(x * 2 + bias).backward(x)                     # any dy of the result's shape: here x itself
assert np.allclose(bias.grad, x.sum(axis=0))
print("dy", x.shape, "-> gradient of the bias", bias.grad.shape)

# %% [markdown]
# ## Now learn something
#
# A curve through points, by nothing but the gradient: two matrices, a `tanh`, and steps downhill.
# This is the whole of deep learning in eight lines; diffusion models only have a better question.

# %%
x = np.linspace(-1, 1, 64)[:, None]
y = np.sin(4 * x) + 0.05 * rng.standard_normal(x.shape)
starts = 2 * rng.standard_normal((1, 32)), rng.standard_normal(32), np.zeros((32, 1)), np.zeros(1)
w1, b1, w2, b2 = weights = [td.Tensor(start, requires_grad=True) for start in starts]
losses = []
for _ in range(300 if FAST else 3000):
    loss = ag.mse(ag.tanh(x @ w1 + b1) @ w2 + b2, y)
    loss.backward()
    losses.append(loss.item())
    for w in weights:
        w.data -= 0.04 * w.grad                # a step downhill
        w.grad = None
with td.no_grad():                             # compute without remembering
    fit = ag.tanh(x @ w1 + b1) @ w2 + b2
viz.curves(x[:, 0], {"the points": y[:, 0], "what was learned": fit.data[:, 0]}, xlabel="x",
           dots=("the points",))

# %%
viz.curves(np.arange(1, len(losses) + 1), {"loss": losses}, xlabel="step", log=True)

# %% [markdown]
# ## Check yourself

# %%
assert losses[-1] < losses[0] / 3                              # it learned
assert fit.requires_grad is False                              # and no_grad kept no memory

deep = start = td.Tensor(np.array(1.0), requires_grad=True)
for _ in range(5000):                                          # deeper than Python's own stack
    deep = deep * 1.0001
deep.backward()
assert np.isclose(start.grad, 1.0001**5000)

try:
    deep.backward()                                            # the memory is freed on the way
    raise AssertionError("a second backward should have been refused")
except RuntimeError as refusal:
    print(refusal)

# %% [markdown]
# **Exercise 1.** Write `cube`, y = x³, as an op. The check below takes any correct answer.
#
# **Exercise 2.** Replace `parent.grad + g` by `g` in `Node.backward`. Which of the cells above
# notices, and why do the others not?

# %%
@ag.op
def cube(x):
    return x**3, lambda dy: (dy * 3 * x * x,)


assert td.gradcheck(cube, rng.standard_normal(7)) < 1e-7
assert np.allclose(cube(td.Tensor(np.array([-2.0, 0.5]))).data, [-8, 0.125])

# %% [markdown]
# **Next:** [04](04_unet.ipynb), the network that all these gradients belong to.
