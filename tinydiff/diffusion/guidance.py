"""Predictors made from predictors: each function takes some and returns one more.

A guided predictor is again a predictor, so guidance, samplers and networks combine freely.
"""

from tinydiff.diffusion.prediction import Prediction, dialect, from_x0


def guided(cond, uncond, w):
    """Classifier-free guidance: away from `uncond`, past `cond`.  CFG Eq. 6, Alg. 2, §3.2

    w = 1 is `cond` itself (`uncond` is never called), w = 0 is `uncond`; the paper's w is ours − 1.
    A negative prompt is the `uncond` to be led away from. The log-variance is `cond`'s.
    """
    return cond if w == 1 else composed(uncond, [cond], [w])


def composed(uncond, conds, weights):
    """Several conditions at once: eps_u + Σ w_i (eps_i − eps_u).  Liu et al. 2206.01714

    A negative weight leads away from its condition. The log-variance is the first condition's.
    ValueError unless there is one weight for each of at least one condition.
    """
    weights = [float(w) for w in weights]                        # a float64 scalar would widen x
    if not weights or len(weights) != len(conds):
        raise ValueError(f"composed: expected one weight for each condition, got {len(weights)} "
                         f"weights and {len(conds)} conditions")

    def predict(x_t, t):
        cs, u = [cond(x_t, t) for cond in conds], uncond(x_t, t)
        return Prediction(x0=u.x0 + sum(w * (c.x0 - u.x0) for w, c in zip(weights, cs)),
                          eps=u.eps + sum(w * (c.eps - u.eps) for w, c in zip(weights, cs)),
                          log_variance=cs[0].log_variance)       # CFG Eq. 6 for one condition

    return predict


def guided_rescaled(cond, uncond, w, schedule, *, predicts, rescale=0.7):
    """Classifier-free guidance that does not overexpose.  Lin et al. 2305.08891, §3.4

    The share `rescale` of what the network names, `predicts`, is brought back to the standard
    deviation that it has in `cond`, picture by picture; 0 is `guided`. ValueError for a dialect
    that is none, and for another share.
    """
    if not 0 <= rescale <= 1:
        raise ValueError(f"guided_rescaled: rescale is a share from 0 to 1, got {rescale}")
    convert, target_of = dialect(predicts)

    def predict(x_t, t):
        levels = schedule.levels(t)
        c = cond(x_t, t)
        p = guided(lambda *_: c, uncond, w)(x_t, t)
        said, past = (target_of(q.x0, q.eps, *levels) for q in (c, p))
        ratio = spread(said) / spread(past).clip(1e-30)          # a flat picture stays flat
        p = convert(x_t, past * (rescale * ratio + (1 - rescale)), *levels)
        return p._replace(log_variance=c.log_variance)

    return predict


def spread(x):
    """The standard deviation of each picture, from its own mean: x (N, …) -> (N, 1, …)."""
    return x.std(axis=tuple(range(1, x.ndim)), keepdims=True)


def within(inside, outside, low, high):
    """`inside` while low < t <= high, else `outside`: guidance where it helps, free elsewhere.

    schedule.time(sigma) turns noise levels into times.  Kynkäänniemi et al. 2404.07724
    ValueError unless low < high.
    """
    if not low < high:
        raise ValueError(f"within: expected low < high, got low = {low} and high = {high}")
    return lambda x_t, t: (inside if low < t <= high else outside)(x_t, t)


def classifier_guided(predict, grad_log_prob, y, schedule, *, scale=1.0):
    """Towards what a classifier takes for y, for ODE solvers and DDIM.  ADM Alg. 2, Eq. 11–14

    grad_log_prob(x_t, t, y) -> ∇ log p(y | x_t) as x_t. x0 follows eps: both keep adding up to
    x_t. Where no signal is left there is nothing to classify, and the prediction stays.
    """
    scale = float(scale)

    def predict_guided(x_t, t):
        p, (signal, noise) = predict(x_t, t), schedule.levels(t)
        if signal == 0:
            return p
        # CFG §3.1
        push = scale * noise * grad_log_prob(x_t, t, y)          # score = −eps/noise: ADM Eq. 11
        return p._replace(eps=p.eps - push,                      # ADM Eq. 14; LDM Eq. 16 prints +
                          x0=p.x0 + noise / signal * push)

    return predict_guided


def clipped(predict, schedule, low=-1.0, high=1.0):
    """Keep the estimate of x0 inside the range of pixels, and make eps agree with it."""

    def predict_inside(x_t, t):
        p = predict(x_t, t)
        inside = from_x0(x_t, p.x0.clip(low, high), *schedule.levels(t))
        return inside._replace(log_variance=p.log_variance)

    return predict_inside


def trace(predict):
    """The same predictor, keeping every Prediction it makes in its list `.predictions`."""

    def traced(x_t, t):
        p = predict(x_t, t)
        traced.predictions.append(p)
        return p

    traced.predictions = []
    return traced
