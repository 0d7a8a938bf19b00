"""Pictures made larger: a U-Net that sees a small one, noised a little, beside x_t.  LDM §4.4

The noise ("conditioning augmentation", Ho et al. 2021, arXiv 2106.15282, §4) hides from it what
only real small pictures have, so that it also takes those that another model drew.
"""

import numpy as np

from tinydiff.asking import digest, is_pair, refuse_unless
from tinydiff.backend import alongside
from tinydiff.diffusion import noise
from tinydiff.diffusion.process import across
from tinydiff.generate import Run
from tinydiff.predictor import network


def smaller(x0, table, schedule, seed, step):
    """What training sees beside x0 (N, H, W, C): its half, noised to a time of each picture's own.

    -> (N, H, W, C + 1), or None where nothing is enlarged. The last channel tells how noisy it is.
    """
    if table.factor == 1:
        return None
    rng = noise.generator(seed, step, purpose=noise.GIVEN)
    s = rng.random(len(x0)) * table.noise * schedule.T
    low = shrunk(x0, table.factor)
    eps = alongside(rng.standard_normal(low.shape, np.float32), low)
    return beside(low, s, eps, schedule, table.factor)


def shrunk(x, factor):
    """The mean of each factor × factor pixels: (N, H, W, C) -> (N, H/factor, W/factor, C)."""
    N, H, W, C = x.shape
    return x.reshape(N, H // factor, factor, W // factor, factor, C).mean(axis=(2, 4))


def beside(low, s, eps, schedule, factor):
    """low (N, h, w, C) noised to times s (N,), enlarged, and s / T as one more channel."""
    x_s = schedule.q_sample(low, s, eps).repeat(factor, axis=1).repeat(factor, axis=2)
    told = np.broadcast_to(across(s / schedule.T, x_s), (*x_s.shape[:3], 1))
    return np.concatenate([x_s, told], axis=-1, dtype=np.float32)


class Beside:
    """A U-Net that also sees `given` (N, H, W, G): called as one that does not."""

    def __init__(self, unet, given):
        self.given, self.config, self.answer = given, unet.config, network(unet)

    def predict(self, x, t, context=None, class_labels=None):
        return self.answer(np.concatenate([x, self.given], axis=-1), t, context, class_labels)


class Upscaler(Run):
    """A trained model that enlarges: init, one uint8 picture or one each, is what it draws beside.

    Its options are those of `Run`, without mask and strength.
    """

    def settings(self, prompts, *, init=None, mask=None, strength=None, size=None, **options):
        factor, C = self.recipe.upscale.factor, self.shape[2]
        refuse_unless((init, init is not None and np.ndim(init) in (3, 4),
                       "init, a picture to enlarge"),
                      ((mask, strength), mask is None and strength is None,
                       "neither mask nor strength, as it only enlarges"))
        wanted = [side * factor for side in init.shape[-3:-1]]
        refuse_unless((size, size is None or list(size) == wanted,
                       f"size {wanted}, {factor} times that of init,"))
        told = super().settings(prompts, size=wanted, **options)
        N = len(prompts) * told["n"]
        shape = (*((N,) if init.ndim == 4 else ()), *init.shape[-3:-1], C)
        return {**told, "init": digest("init", init, shape)}

    def stages(self, asked):
        [(run, steps, options)] = super().stages(asked)
        H, W = (side // self.recipe.upscale.factor for side in options.pop("size"))
        yield run, steps, {**options, "init": np.zeros((H, W, self.shape[2]), np.uint8)}

    def start(self, z, known, t, std):
        return std * z

    def predictor(self, cond, uncond, guidance, known, index, seed, **_):
        """A predictor that sees what is `known`, the small pictures (N, h, w, C), beside x_t."""
        table, T = self.recipe.upscale, self.schedule.T
        eps = self.normal(seed, index, 0, known.shape[1:], purpose=noise.GIVEN)
        s = np.full(len(known), table.own * T)
        unet = Beside(self.unet, beside(known, s, eps, self.schedule, table.factor))
        return self.guided(unet, cond, uncond, guidance)


class Cascade(Run):
    """One Run draws, another enlarges what it drew: all five stages from a text to a picture."""

    def __init__(self, small, large, name):
        self.small, self.large, self.name = small, large, name
        self.times = large.recipe.upscale.factor
        self.recipe, self.own, self.precision = small.recipe, small.own, small.precision
        self.model, self.unet = small.model, small.unet
        self.shape, self.factor = large.shape, small.factor * self.times

    def settings(self, prompts, *, size=None, init=None, mask=None, **options):
        """As of `Run`, in pixels of what is drawn in the end."""
        size = (self.shape if init is None else np.shape(init))[:2] if size is None else size
        refuse_unless((size, is_pair(size, self.factor),
                       f"size (H, W) in multiples of {self.factor}"))
        told = self.small.settings(prompts, size=[side // self.times for side in size], **options,
                                   **self.reduced(init, mask))
        return {**told, "model": self.name, "size": [int(side) for side in size]}

    def stages(self, asked):
        H, W = (side // self.times for side in asked["size"])
        yield from self.small.stages({**asked, "size": [H, W]})
        blank = np.zeros((H, W, self.shape[2]), np.uint8)
        yield from self.large.stages(self.large.settings(
            asked["prompts"], n=asked["n"], seed=asked["seed"], init=blank))

    def denoise(self, prompts, *, n=1, seed=0, size=None, init=None, mask=None, batch=64,
                show=False, **options):
        """Iterate over frames uint8 (N, H, W, C): the small picture as it appears, then the large.

        The options are those of `Run.generate`.
        """
        asked = self.settings(prompts, n=n, seed=seed, size=size, init=init, mask=mask, **options)
        size = [side // self.times for side in asked["size"]]
        frames = self.small.denoise(prompts, n=n, seed=seed, size=size, batch=batch, show=show,
                                    **options, **self.reduced(init, mask))
        return self.both(frames, prompts, dict(n=n, seed=seed, batch=batch, show=show))

    def both(self, frames, prompts, options):
        for x_t in frames:
            small = self.small.pixels(x_t)
            yield small.repeat(self.times, axis=1).repeat(self.times, axis=2)
        for x_t in self.large.denoise(prompts, init=small, **options):
            yield self.large.pixels(x_t)

    def reduced(self, init, mask):
        """init and mask as the small Run takes them; any pixel to be painted paints its square."""
        def less(picture, how):
            if picture is None or np.ndim(picture) != 3 or any(
                    side % self.times for side in picture.shape[:2]):
                return picture                            # for `settings` to refuse
            H, W, C = picture.shape
            squares = picture.reshape(H // self.times, self.times, W // self.times, self.times, C)
            return how(squares, axis=(1, 3)).astype(picture.dtype)
        return {"init": less(init, np.mean), "mask": less(mask, np.max)}

    def pixels(self, frame):
        return frame
