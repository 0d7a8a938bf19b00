"""What turns gradients into steps: AdamW and Muon over one flat buffer, clipping, the rate, EMA.

All parameters live in one long array, their gradients in another: each `p.data` and `p.grad` is a
view into them. A step is then a few lines on two arrays, however many layers there are.
"""

from math import cos, inf, pi

from tinydiff.backend import array_module
from tinydiff.kernels import bfloat16, elementwise, pick
from tinydiff.parallel import one_blas_thread


class Flat:
    """Parameters {path: Tensor} moved into one buffer `data`, their gradients into `grad`.

    Weights, which have at least two axes, stand before biases, scales and shifts: the first
    `weights` numbers. Of these `half` is a copy in bf16, which products take, if they are `halved`.
    """

    def __init__(self, parameters, halved=False):
        first = next(iter(parameters.values())).data
        xp = array_module(first)
        order = sorted(parameters, key=lambda name: parameters[name].ndim < 2)
        self.parameters = {name: parameters[name] for name in order}
        self.weights = sum(p.data.size for p in parameters.values() if p.ndim > 1)
        size = sum(p.data.size for p in parameters.values())
        self.data = xp.empty(size, first.dtype)
        self.grad = xp.zeros(size, first.dtype)
        data, grad = self.views(self.data), self.views(self.grad)
        for name, p in parameters.items():
            data[name][...] = p.data
            p.data, p.grad = data[name], grad[name]
        self.half = elementwise.cast(self.data[:self.weights], bfloat16()) if halved else None
        if halved:
            for name, half in self.views(self.half).items():
                self.parameters[name].half = half

    def views(self, buffer):
        """{path: the part of `buffer` that belongs to that parameter, in its shape}."""
        out, start = {}, 0
        for name, p in self.parameters.items():
            if start < buffer.size:                       # one of weights alone ends before
                out[name] = buffer[start:start + p.data.size].reshape(p.shape)
            start += p.data.size
        return out

    def halve(self):
        """Bring `half` up to date, where weights moved in another way than by AdamW."""
        if self.half is not None:
            self.half[...] = elementwise.cast(self.data[:self.weights], bfloat16())


class AdamW:
    """Adam with decoupled weight decay.  Kingma & Ba, Alg. 1; Loshchilov & Hutter, Alg. 2

    flat: a Flat, whose weights decay; biases, scales and shifts do not. ema: an EMA of the same,
    updated on the way.
    """

    def __init__(self, flat, *, beta1=0.9, beta2=0.99, eps=1e-8, decay=0.0, ema=None):
        xp = array_module(flat.data)
        self.flat, self.ema = flat, ema
        self.beta1, self.beta2, self.eps, self.decay = beta1, beta2, eps, decay
        self.m = xp.zeros_like(flat.data)                 # running mean of the gradient
        self.v = xp.zeros_like(flat.data)                 # running mean of its square

    def step(self, lr, step):
        """Move the parameters by the gradient in `flat.grad`, and zero it; step = 1, 2, …"""
        flat, ema = self.flat, self.ema
        pick("optimizer", flat.data).step(
            flat.data, flat.grad, self.m, self.v, ema and ema.data, half=flat.half,
            decaying=flat.weights, scale=1.0, **self.how(lr, step))

    def how(self, lr, step):
        """What a step has to know."""
        return {"lr": lr, "step": step, "beta1": self.beta1, "beta2": self.beta2, "eps": self.eps,
                "decay": self.decay, "ema_decay": self.ema.decay_at(step) if self.ema else 1.0}

    def step_unheard(self, numbers, loss, largest):
        """`clip_grad` and `step` on a GPU, for which nobody waits -> the norm, (1,) float64

        numbers: what the rung in use makes of `how`, (8,) on the GPU. Where the norm or the loss
        (), an array, is no number, the norm is none and nothing moves.
        """
        flat, rung = self.flat, pick("optimizer", self.flat.data)
        norm = array_module(flat.data).empty(1, "float64")
        rung.norm_into(norm, flat.grad)
        norm += 0 * loss
        rung.clip_into(numbers, norm, largest)
        rung.step_with(numbers, flat.data, flat.grad, self.m, self.v, self.ema and self.ema.data,
                       flat.half, flat.weights)
        return norm


class Muon(AdamW):
    """Matrices move by the orthogonal matrix nearest to the running mean of their gradient.

    So all that a layer could learn is learned at one pace; with Adam what is rarely of use, such
    as "left of", waits until all else is known. What is no linear map or convolution (.w) moves
    as with AdamW, and all move as far: an entry by 0.2 · lr in the mean.  Jordan et al. 2024
    (kellerjordan.github.io/posts/muon), Liu et al. (2502.16982) Eq. 4
    """

    def __init__(self, flat, *, ema=None, **options):
        super().__init__(flat, **options)
        self.mean = ema                                   # not AdamW's: it waits for the matrices

    @one_blas_thread()
    def step(self, lr, step):
        """Move the parameters by the gradient in `flat.grad`, and zero it; step = 1, 2, …"""
        flat, m = self.flat, self.flat.views(self.m)
        before = {name: p.data.copy() for name, p in flat.parameters.items()
                  if name.split(".")[-1] == "w"}
        super().step(lr, step)
        for name, w in before.items():
            G = m[name].reshape(-1, w.shape[-1])          # (inputs, outputs) of each
            O = 0.2 * max(G.shape) ** 0.5 * orthogonal(G)
            flat.parameters[name].data[...] = w - lr * (O.reshape(w.shape) + self.decay * w)
        flat.halve()
        if self.mean:
            self.mean.update(step)


def orthogonal(G):
    """Roughly U Vᵀ, where G = U S Vᵀ: five steps of Newton and Schulz, on any device.

    A step is X ← X (a + b A + c A²), with A = Xᵀ X; all that is long is left out until the end.
    The polynomial is so steep at 0 that singular values end anywhere from 0.7 to 1.2.
    """
    xp = array_module(G)
    X = G / (xp.sqrt((G * G).sum()) + 1e-7)
    X = X if G.shape[0] >= G.shape[1] else X.T            # upright
    one = Q = xp.eye(X.shape[1], dtype=X.dtype)
    A = X.T @ X
    for _ in range(5):
        P = 3.4445 * one - 4.7750 * A + 2.0315 * (A @ A)
        A, Q = P @ A @ P, Q @ P
    return X @ Q if G.shape[0] >= G.shape[1] else (X @ Q).T


class EMA:
    """A running mean of the parameters: what is sampled from. Only parameters, nothing else.

    The decay warms up, min(decay, (1 + step) / (10 + step)), so that the random start is forgotten.
    """

    def __init__(self, flat, *, decay):
        self.flat, self.decay = flat, decay
        self.data = flat.data.copy()

    def decay_at(self, step):
        return min(self.decay, (1 + step) / (10 + step))

    def update(self, step):
        """Take the weights of step 1, 2, … in. An AdamW that knows of the EMA does it itself."""
        self.data += (1 - self.decay_at(step)) * (self.flat.data - self.data)


def clip_grad(flat, largest):
    """Scale the gradient down to the norm `largest` if it is longer; return its norm before.

    A gradient without a finite norm is left as it is.
    """
    norm = pick("optimizer", flat.grad).norm(flat.grad)
    if largest < norm < inf:
        flat.grad *= largest / norm
    return norm


def learning_rate(step, *, lr, warmup, steps):
    """lr at step 1 … steps: rises over `warmup` steps, then falls to 0 along half a cosine.

    Where steps is None there is no end to fall to, and it stays.
    """
    if step <= warmup:
        return lr * step / warmup
    if steps is None:
        return lr
    return lr * 0.5 * (1 + cos(pi * (step - warmup) / max(1, steps - warmup)))
