"""Where the two towers meet: a network on Tensors becomes functions on arrays."""

from contextlib import contextmanager
from functools import partial
from operator import is_
from weakref import WeakKeyDictionary, ref

import numpy as np

from tinydiff.autograd import Tensor, cross_entropy
from tinydiff.backend import array_module
from tinydiff.diffusion.objective import learned_log_variance
from tinydiff.diffusion.prediction import PREDICTS, edm_scale
from tinydiff.diffusion.process import across
from tinydiff.models.unet import UNet, each
from tinydiff.replay import Replayed

_graphs = WeakKeyDictionary()                             # {U-Net: (its weights, a Replayed)}


def denoiser(unet, schedule, context=None, class_labels=None, clock=None):
    """A predictor (x_t, t) -> Prediction from a U-Net; t is the schedule's, in (0, T].

    Whatever the network predicts (unet.config.predicts), and however it counts time
    (unet.config.t_first, or a function `clock` of t), the Prediction holds x0 and eps.
    context (N, L, D) goes with x_t (N, …).
    Of a network that learned its variance, log_variance is a function of s, the time the step goes
    to: the sampler knows it (iDDPM Eq. 19). ValueError where it would name the noise of a schedule
    that ends without signal.
    """
    refuse_eps_without_signal(unet, schedule)
    answer = network(unet)

    def predict(x_t, t):
        levels = schedule.levels(t)
        heard, time = as_heard(unet, levels, x_t, t)
        output = answer(heard, clock(t) if clock else time, context, class_labels)
        p, v = as_said(unet, levels, x_t, output)
        if not v.size:
            return p
        return p._replace(log_variance=partial(learned_log_variance, schedule, v, t))

    return predict


def eps_vjp(unet, schedule, context=None, class_labels=None):
    """For likelihoods along the ODE: (x_t, t, dy) -> ∂(Σ eps · dy)/∂x_t, both as x_t.

    eps is what `denoiser` of the same arguments predicts. ValueError as there.
    """
    refuse_eps_without_signal(unet, schedule)

    def vjp(x_t, t, dy):
        x = Tensor(x_t, requires_grad=True)
        with frozen(unet):
            levels = schedule.levels(t)
            heard, time = as_heard(unet, levels, x, t)
            output = unet(heard, each(time, x_t), context, class_labels)
            as_said(unet, levels, x, output)[0].eps.backward(dy)
        return x.grad

    return vjp


def grad_log_prob(classifier):
    """For classifier guidance: (x_t, t, y) -> ∇ log p(y | x_t, t), as x_t.  ADM Eq. 6

    classifier(x_t (N, …), t (N,)) -> logits (N, classes), as NoisyClassifier; y is one class or
    (N,) of them.
    """

    def gradient(x_t, t, y):
        x = Tensor(x_t, requires_grad=True)
        y = np.broadcast_to(y, len(x_t))
        with frozen(classifier):
            loss = cross_entropy(classifier(x, each(t, x_t)), labels=y)    # −Σ log p(y | x_t)/N
            (loss * -len(x_t)).backward()
        return x.grad

    return gradient


def network(unet):
    """What asks a U-Net as its `predict`; on a GPU a graph, as long as the weights lie there."""
    if not isinstance(unet, UNet):
        return unet.predict
    if array_module(unet.home) is np:
        _graphs.pop(unet, None)
        return unet.predict
    weights = [unet.activations, *(a for p in unet.parameters().values() for a in (p.data, p.half))]
    known, graphs = _graphs.get(unet, ([], None))
    if len(known) != len(weights) or not all(map(is_, known, weights)):
        graphs = Replayed(partial(asked, ref(unet), weights), like=unet.home)
        _graphs[unet] = weights, graphs

    def answer(x, t, context=None, class_labels=None):
        told = x, each(t, x), context, class_labels
        if any(a is not None and array_module(a) is np for a in told):
            return unet.predict(x, t, context, class_labels)          # which says what is wrong
        return graphs(*told)[0]

    return answer


def asked(unet, weights, *told):
    """The work of a graph: it keeps its weights where they are, and lets go of the U-Net."""
    return [unet().predict(*told)]


def as_heard(unet, levels, x, t):
    """x_t and t, one number or (N,), as the network takes them: scaled, in its own count.

    levels: the schedule's at t, (signal, noise).
    """
    if unet.config.predicts == "edm":
        x = across(edm_scale(*levels), x) * x
    return x, t - 1 + unet.config.t_first


def as_said(unet, levels, x, output):
    """The network's output (N, H, W, C or 2C): a Prediction, and v of the variance (or none)."""
    C = x.shape[-1]
    convert = PREDICTS[unet.config.predicts]
    return convert(x, output[..., :C], *levels), output[..., C:]


def refuse_eps_without_signal(unet, schedule):
    if unet.config.predicts == "eps" and schedule.signal(schedule.T) == 0:
        raise ValueError(f"denoiser: schedule {schedule.name} ends without signal (zero terminal "
                         f"SNR), where eps says nothing about x0, but the network predicts eps; "
                         f"train it to predict v or x0")


@contextmanager
def frozen(module):
    """Gradients pass through but do not stay: no parameter is touched while this lasts."""
    learning = [p for p in module.parameters().values() if p.requires_grad]
    for p in learning:
        p.requires_grad = False
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad = True
