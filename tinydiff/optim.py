"""What turns gradients into steps: AdamW over one flat buffer, clipping, the learning rate, EMA.

All parameters live in one long array, their gradients in another: each `p.data` and `p.grad` is a
view into them. A step is then a few lines on two arrays, however many layers there are.
"""

from math import cos, inf, pi

from tinydiff.backend import array_module


class Flat:
    """Parameters {path: Tensor} moved into one buffer `data`, their gradients into `grad`.

    twin_of: another Flat of a model of the same shape. Both then share its `data` and nothing else:
    two threads can work on the same weights and gather their gradients apart.
    """

    def __init__(self, parameters, twin_of=None):
        first = next(iter(parameters.values())).data
        xp = array_module(first)
        size = sum(p.data.size for p in parameters.values())
        self.parameters = parameters
        self.data = xp.empty(size, first.dtype) if twin_of is None else twin_of.data
        self.grad = xp.zeros(size, first.dtype)
        data, grad = self.views(self.data), self.views(self.grad)
        for name, p in parameters.items():
            if twin_of is None:
                data[name][...] = p.data
            p.data, p.grad = data[name], grad[name]

    def views(self, buffer):
        """{path: the part of `buffer` that belongs to that parameter, in its shape}."""
        out, start = {}, 0
        for name, p in self.parameters.items():
            out[name] = buffer[start:start + p.data.size].reshape(p.shape)
            start += p.data.size
        return out


class AdamW:
    """Adam with decoupled weight decay.  Kingma & Ba, Alg. 1; Loshchilov & Hutter, Alg. 2

    flat: a Flat. Weights with at least two axes decay; biases, scales and shifts do not.
    """

    def __init__(self, flat, *, beta1=0.9, beta2=0.99, eps=1e-8, decay=0.0):
        xp = array_module(flat.data)
        self.flat = flat
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay
        self.m = xp.zeros_like(flat.data)                 # running mean of the gradient
        self.v = xp.zeros_like(flat.data)                 # running mean of its square
        self.decaying = xp.zeros_like(flat.data)
        for name, view in flat.views(self.decaying).items():
            view[...] = flat.parameters[name].ndim > 1

    def step(self, lr, step):
        """Move the parameters by the gradient in `flat.grad`, and zero it; step = 1, 2, …"""
        g, m, v = self.flat.grad, self.m, self.v
        xp = array_module(g)
        m += (1 - self.beta1) * (g - m)
        v += (1 - self.beta2) * (g * g - v)
        m_hat_scale = 1 / (1 - self.beta1**step)          # both means started at zero
        v_hat_scale = 1 / (1 - self.beta2**step)
        if self.decay:
            self.flat.data -= lr * self.decay * self.decaying * self.flat.data
        self.flat.data -= lr * m_hat_scale * m / (xp.sqrt(v * v_hat_scale) + self.eps)
        g[...] = 0


class EMA:
    """A running mean of the parameters: what is sampled from. Only parameters, nothing else.

    The decay warms up, min(decay, (1 + step) / (10 + step)), so that the random start is forgotten.
    """

    def __init__(self, flat, *, decay):
        self.flat, self.decay = flat, decay
        self.data = flat.data.copy()

    def update(self, step):
        decay = min(self.decay, (1 + step) / (10 + step))
        self.data += (1 - decay) * (self.flat.data - self.data)


def clip_grad(flat, largest):
    """Scale the gradient down to the norm `largest` if it is longer; return its norm before.

    A gradient without a finite norm is left as it is.
    """
    norm = float(array_module(flat.grad).sqrt((flat.grad * flat.grad).sum()))
    if largest < norm < inf:
        flat.grad *= largest / norm
    return norm


def learning_rate(step, *, lr, warmup, steps):
    """lr at step 1 … steps: rises over `warmup` steps, then falls to 0 along half a cosine."""
    if step <= warmup:
        return lr * step / warmup
    return lr * 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))
