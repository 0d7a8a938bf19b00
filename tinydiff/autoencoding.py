"""Training the autoencoder, told straight: LDM Eq. 25 on pictures alone, before all else.

    training = AutoencoderTraining(recipe, dataset)       # train.fit runs it like any other
    autoencoder = training.finished()                     # and its latents are diffused

L_rec is the squared error alone; a perceptual loss would need a network trained elsewhere.
"""

from copy import deepcopy
from dataclasses import asdict, replace
from math import isfinite

import numpy as np

from tinydiff import checkpoint, images
from tinydiff.autograd import Tensor, mean, mse, sum
from tinydiff.backend import alongside
from tinydiff.diffusion import noise
from tinydiff.models import (
    AutoencoderConfig,
    Discriminator,
    adaptive_weight,
    autoencoder_for,
    hinge,
)
from tinydiff.optim import EMA, AdamW, Flat, clip_grad, learning_rate
from tinydiff.parallel import one_blas_thread
from tinydiff.resuming import Diverged, put_back, read_state, refuse_lost
from tinydiff.train import play_back, worst

DECIDES = "data.", "autoencoder.", "train.seed", "train.clip"      # on the pictures' latents
ADVICE = "train into another folder with a smaller autoencoder.lr"


class AutoencoderTraining:
    """An autoencoder in the making, with all that its next step depends on.

    steps_done counts the optimizer steps behind it. The discriminator joins after the first
    `adversarial_from` of them, if `adversarial` is not 0.
    """

    file, log, what = "autoencoder.safetensors", "autoencoder.csv", "autoencoder"
    torn = False                                          # as of Training

    def __init__(self, recipe, dataset, device="cpu"):
        self.recipe, self.dataset, self.plan = recipe, dataset, recipe.autoencoder
        rng = np.random.default_rng(recipe.train.seed)
        self.model = autoencoder_for(self.plan.config(dataset.shape[-1]), rng=rng).to(device)
        self.flat = Flat(self.model.parameters())
        self.ema = EMA(self.flat, decay=self.plan.ema)
        self.optimizer = AdamW(self.flat, ema=self.ema)
        self.discriminator = Discriminator(dataset.shape[-1], rng=rng).to(device)
        self.opponent = AdamW(Flat(self.discriminator.parameters()))
        self.steps_done = 0

    @np.errstate(all="ignore")                            # a lost number is found and named
    def step(self):
        """One descent on the loss  -> (loss, lr, norm of the gradient)

        Raises Diverged, naming step and layer and leaving the weights alone, when a number is lost.
        """
        t, step = self.plan, self.steps_done + 1
        loss, clip = self.gradient(step), self.recipe.train.clip
        norm = clip_grad(self.flat, clip)
        if not isfinite(norm):
            raise Diverged(f"the gradient of step {step} is {norm}, "
                           f"lost at {worst(self.flat.views(self.flat.grad))}; {ADVICE}")
        lr = learning_rate(step, lr=t.lr, warmup=t.warmup, steps=t.steps)
        self.torn = True
        self.optimizer.step(lr, step)
        if self.contested(step):
            clip_grad(self.opponent.flat, clip)
            self.opponent.step(lr, step - t.adversarial_from)
        if t.codes:
            rng = noise.generator(self.recipe.train.seed, step, purpose=noise.DROPOUT)
            self.model.codebook.update(self.latents, rng)
        self.steps_done, self.torn = step, False
        return loss, lr, norm

    def contested(self, step):
        return self.plan.adversarial > 0 and step > self.plan.adversarial_from

    @one_blas_thread()
    def gradient(self, step):
        """Put the gradients of step 1, 2, … into both Flats' `grad`; return the loss."""
        x, t = self.batch(step), self.plan
        moments = self.model.moments(x)
        self.latents = moments[0].data                    # for the codebook
        eps = noise.alike(self.latents, self.recipe.train.seed, step, purpose=noise.TRAIN_EPS)
        z, regular = self.model.bottleneck(*moments, eps)
        h = self.model.features(z)
        picture = self.model.painted(h)
        weight = 1 if t.codes else t.kl / x[0].size       # of a picture, beside a mean over pixels
        loss = mse(picture, x) + weight * regular         # LDM Eq. 25
        if self.contested(step):
            loss = loss + self.contest(picture, x, h)
        return play_back(loss, self.flat, step, ADVICE)

    def contest(self, picture, x, h):
        """λ L_adv as it depends on the picture, a Tensor; and the discriminator's own gradient.

        h are the features that `picture` was painted from, x what it should be.
        """
        fake, near = (Tensor(picture.data, requires_grad=True) for _ in range(2))
        adversarial = -mean(self.discriminator(fake))     # LDM Eq. 25: − L_adv
        adversarial.backward()
        mse(near, x).backward()
        weight = self.plan.adversarial * adaptive_weight(
            self.at_last_layer(h, near.grad), self.at_last_layer(h, fake.grad))
        self.opponent.flat.grad[...] = 0                  # nothing of − L_adv is the opponent's
        hinge(self.discriminator(x), self.discriminator(picture.data)).backward()
        slope = sum(picture * (weight * fake.grad))       # has the gradient of λ L_adv
        return slope + (weight * adversarial.item() - slope.item())

    def at_last_layer(self, h, dy):
        """The gradient of conv_out.w, the decoder's last, where the picture's is dy."""
        self.flat.grad[...] = 0
        self.model.painted(Tensor(h.data)).backward(dy)
        return self.model.decoder.conv_out.w.grad.copy()

    def batch(self, step):
        """The pictures x (N, H, W, C) in [-1, 1] of step 1, 2, …"""
        seed = self.recipe.train.seed
        rng = noise.generator(seed, step, purpose=noise.CAPTION)
        x = self.dataset.batch(self.plan.batch, step - 1, seed, 1.0, rng)[0]
        mirrored = rng.random(len(x)) < 0.5 * self.recipe.data.flip
        x[mirrored] = x[mirrored, :, ::-1]
        return images.to_float(alongside(x, self.flat.data))

    def finished(self, batches=8):
        """The Autoencoder of the weights' running means; scale and shift measured on some batches.

        σ̂² = mean (z − μ̂)², so that its latents have mean 0 and deviation 1.  LDM App. G
        """
        model = deepcopy(self.model)
        model.load(self.flat.views(self.ema.data))
        z = np.concatenate([model.encode(self.batch(step + 1))[0] for step in range(batches)])
        model.config = replace(model.config, shift=float(z.mean()), scale=1 / float(z.std()))
        return model

    def state(self):
        """{path: array}: all the numbers that the next step depends on, and the running mean."""
        own, other = self.optimizer, self.opponent
        return {f"{kind}/{name}": view for kind, flat, buffer in (
                    ("model", self.flat, self.flat.data), ("ema", self.flat, self.ema.data),
                    ("adam_m", self.flat, own.m), ("adam_v", self.flat, own.v),
                    ("opponent", other.flat, other.flat.data),
                    ("opponent_m", other.flat, other.m), ("opponent_v", other.flat, other.v))
                for name, view in flat.views(buffer).items()}

    def save(self, path):
        """Write a checkpoint from which `load` goes on bit for bit.

        Raises Diverged, leaving the file alone, rather than write what is no number.
        """
        state = self.state()
        refuse_lost(state, self.steps_done, ADVICE)
        checkpoint.save(path, state, {"recipe": self.recipe.toml(), "step": self.steps_done,
                                      "autoencoder": asdict(self.finished().config)})

    def load(self, path):
        """Go on from a checkpoint of the same [data] and [autoencoder], seed and clip.

        Raises ValueError naming what differs.
        """
        arrays, config = read_state(path, self.recipe, DECIDES)
        put_back(path, arrays, self.state())
        self.steps_done = config["step"]


def load_autoencoder(path):
    """The finished Autoencoder of a checkpoint.  Raises ValueError for a file that holds none."""
    arrays, config = checkpoint.load(path)
    if "autoencoder" not in config:
        raise ValueError(f"{path} is no checkpoint of an autoencoder; train a recipe that has one")
    own = AutoencoderConfig(**checkpoint.tuples(config["autoencoder"]))
    model = autoencoder_for(own, rng=np.random.default_rng(0))
    model.load({name.removeprefix("ema/"): array for name, array in arrays.items()
                if name.startswith("ema/")})
    return model
