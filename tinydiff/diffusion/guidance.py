"""Predictors made from predictors: each function takes some and returns one more."""

from tinydiff.diffusion.prediction import Prediction, from_x0


def guided(cond, uncond, w):
    """Classifier-free guidance: away from `uncond`, past `cond`.  CFG Eq. 6

    w = 1 is `cond` itself (`uncond` is never called), w = 0 is `uncond`; the paper's w is ours − 1.
    The log-variance is `cond`'s.
    """
    w = float(w)                                                 # a float64 scalar would widen x
    if w == 1:
        return cond

    def predict(x_t, t):
        c, u = cond(x_t, t), uncond(x_t, t)
        return Prediction(x0=u.x0 + w * (c.x0 - u.x0),
                          eps=u.eps + w * (c.eps - u.eps),       # CFG Eq. 6
                          log_variance=c.log_variance)

    return predict


def clipped(predict, schedule, low=-1.0, high=1.0):
    """Keep the estimate of x0 inside the range of pixels, and make eps agree with it."""

    def predict_inside(x_t, t):
        p = predict(x_t, t)
        inside = from_x0(x_t, p.x0.clip(low, high), schedule.signal(t), schedule.noise(t))
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
