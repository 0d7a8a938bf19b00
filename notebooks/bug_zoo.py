"""Real mistakes, each one line, that can be let into the running code and out again.

    with bug_zoo.cage(3):                     number 3, whatever it is; bug_zoo.reveal(3) tells
        pictures = td.sample(...)
    with bug_zoo.mistake("v with the wrong sign"):
        diagnostics.examine()

Inside the `with` a function of the package has one line changed, wherever it is called from, and
`inspect.getsource` shows it as it runs. TINYDIFF_MISTAKE="nats sold as bits" pytest … lets a
mistake into the whole test suite.
"""

import linecache
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import getsource, unwrap
from pkgutil import resolve_name
from textwrap import dedent
from zlib import crc32


@dataclass(frozen=True)
class Mistake:
    """One function with `wrong` where `right` belongs."""

    name: str
    story: str         # whose it was, or why one makes it
    where: str         # module:function, below tinydiff
    right: str         # text in the source of that function
    wrong: str
    fails: str = ""    # the diagnostics that must notice, by name


MISTAKES = (
    Mistake("linear and scaled linear swapped",
            "Latent Diffusion's code calls linear what is linear in √β, and the linear one "
            "sqrt_linear; elsewhere one name stands for both.",
            "diffusion.schedule:Schedule.linear",
            "np.linspace(0.1, 20, T) / T", "np.linspace(0.1**0.5, 20**0.5, T) ** 2 / T",
            "published_numbers"),
    Mistake("tables read one row too early",
            "Row 0 is t = 1 in some code and clean data in other; the two meet.",
            "diffusion.schedule:Schedule.levels",
            "self.alpha_bar_at(t)", "self.alpha_bar_at((t - 1) * (t > 0))",
            "forward_chain"),
    Mistake("noise weighed by its variance",
            "A root forgotten: √(1 − ᾱ) is a deviation, 1 − ᾱ a variance.",
            "diffusion.process:noised",
            "across(noise, x0) * eps", "across(noise**2, x0) * eps",
            "forward_chain"),
    Mistake("the root over the whole product",
            "One conversion of the DDPM paper has √(α_t (1 − ᾱ_{t−1})) in Eq. 7, where the root "
            "covers α_t only.",
            "diffusion.process:Process.posterior",
            "across(rest * b_s / b_t, x_t)", "across(rest / b_t, x_t)",
            "posterior one_point"),
    Mistake("beta where beta tilde is meant",
            "The DDPM paper has both. Its CIFAR-10 pictures use β, smalldiffusion and diffusers by "
            "default β̃.",
            "diffusion.samplers.ancestral:fixed_small",
            "schedule.posterior_variance(t, s)", "schedule.step_variance(t, s)",
            "one_point"),
    Mistake("noise in the last step too",
            "LabML's annotated DDPM adds it at its last step, where the paper's Algorithm 2 says "
            "z = 0.",
            "diffusion.samplers.ancestral:ddpm",
            "if s > 0:", "if s >= 0:",
            "one_point"),
    Mistake("the direction to x_t subtracted",
            "DDIM in AkiRusProd's numpy-nn-model, whose pictures come from its DDPM.",
            "diffusion.samplers.implicit:ddim",
            "+ (b_s**2 - variance) ** 0.5", "- (b_s**2 - variance) ** 0.5",
            "spread orders"),
    Mistake("the lowest times only",
            "The same DDIM: range(1, T)[:steps] starts from pure noise and calls it t = steps.",
            "diffusion.spacing:trailing",
            "np.linspace(schedule.T, 0, _steps(schedule, n) + 1)",
            "np.arange(float(_steps(schedule, n)), -1, -1)",
            "spacings spread"),
    Mistake("a stride of whole steps",
            "range(0, T, T // n) in Latent Diffusion and in LabML: for 984 of 1000 step counts it "
            "is not n steps. Four threads in three projects report it.",
            "diffusion.spacing:leading",
            "range(start, 0, -stride)", "range(1 + (T - 1) // stride * stride, 0, -stride)",
            "spacings"),
    Mistake("deviations subtracted, not variances",
            "down² + up² = σ_s² looks so much like down + up = σ_s.",
            "diffusion.samplers.sigma_space:euler_ancestral",
            "(sigma_s**2 - down**2) ** 0.5", "sigma_s - down",
            "spread"),
    Mistake("the second slope at the old time",
            "A copied line: Heun asks at the new place, but tells the network the old time.",
            "diffusion.samplers.sigma_space:_heun_step",
            "ask(predict, x_s, s)", "ask(predict, x_s, t)",
            "orders"),
    Mistake("all steps taken for equal",
            "A half for every step, the weight of Adams and Bashforth: on equal steps it is right.",
            "diffusion.samplers.exponential:dpmpp_2m",
            "h / (2 * h1)", "0.5",
            "orders"),
    Mistake("half a parabola",
            "Published code of third order gives the curvature half its weight, and is of second "
            "order.",
            "diffusion.samplers.exponential:dpmpp_3m",
            "(i2 + h1 * i1) * f2", "(i2 / 2 + h1 * i1) * f2",
            "orders"),
    Mistake("a guidance weight that starts at zero",
            "In smalldiffusion, as in the paper, w = 0 is no guidance; in Latent Diffusion and "
            "diffusers, as here, w = 1 is.",
            "diffusion.guidance:guided",
            "[cond], [w]", "[cond], [w + 1]",
            "guidance"),
    Mistake("away from the class",
            "Eq. 16 of the Latent Diffusion paper prints a plus, where ADM's Eq. 14 has a minus.",
            "diffusion.guidance:classifier_guided",
            "push = scale", "push = -scale",
            "classifier"),
    Mistake("x0 clipped and eps not",
            "In ExplainingAI's samplers x0 is clamped and returned, and the step made without it.",
            "diffusion.guidance:clipped",
            "from_x0(x_t, p.x0.clip(low, high), *schedule.levels(t))",
            "p._replace(x0=p.x0.clip(low, high))",
            "dialects"),
    Mistake("v with the wrong sign",
            "v = signal · eps − noise · x0; whoever remembers it the other way round trains well "
            "and samples badly.",
            "diffusion.prediction:from_v",
            "a * x_t - b * v", "a * x_t + b * v",
            "dialects"),
    Mistake("training from t = 0 to T − 1",
            "randint(0, T) is right for tables that start at t = 1; for these it never asks about "
            "pure noise, from which sampling starts.",
            "diffusion.objective:numbers",
            "1 + (schedule.T * u)", "(schedule.T * u)",
            "training_times"),
    Mistake("nats sold as bits",
            "OpenAI's hybrid loss counts in bits; whoever takes its λ = 0.001 to nats is off by "
            "ln 2. Four threads ask about it.",
            "diffusion.likelihood:vlb_term",
            "1 / (LN2 * mean[0].size)", "1 / mean[0].size",
            "bound"),
    Mistake("the prior forgotten",
            "It is 0.00001 bits/dim in the paper, so nobody misses it, until a chain is cut short.",
            "diffusion.likelihood:Bound.total",
            "self.prior + self.terms.sum(1)", "self.terms.sum(1)",
            "bound"),
    Mistake("bins of half their width",
            "Pixels in [-1, 1] are 2/255 apart, those in [0, 1] are 1/255.",
            "diffusion.densities:discretised",
            "1 / 255)", "0.5 / 255)",
            "decoder"),
    Mistake("time told by the place in the batch",
            "The table of waves in AkiRusProd's numpy-nn-model is sliced by batch size: row k "
            "trains with offset k and samples with the offset 0.",
            "nn.time_embedding:sinusoids",
            "t[:, None]", "(t + xp.arange(len(t)))[:, None]",
            "same_answer"),
    Mistake("one stream of noise for the batch",
            "As from a global generator: what a picture gets depends on those drawn beside it.",
            "diffusion.noise:batch",
            "rows(seed, purpose, images := list(images), step, n)",
            "words(seed, purpose, 0, step, n * len(images := list(images))).reshape(n, -1).T",
            "same_noise"),
    Mistake("scores not divided",
            "Without 1/√d wide heads see one token each, and learn slowly.",
            "autograd.product:attention",
            "q.shape[-1] ** -0.5", "1.0",
            "one_head"),
    Mistake("the last gradient wins",
            "A value used twice has two gradients, and they add up: the first mistake of homemade "
            "autograd.",
            "autograd.tensor:backward",
            "elementwise.add(grads[parent], g)", "g",
            "gradients"),
    Mistake("a bias's gradient averaged",
            "What was stretched over a batch gets a sum of gradients; a mean looks as tidy.",
            "autograd.tensor:unbroadcast",
            "g.sum(axis=axes)", "g.mean(axis=axes)",
            "gradients"),
    Mistake("an average that averages nothing",
            "No copy: the EMA and the weights are one array.",
            "optim:EMA.__init__",
            "flat.data.copy()", "flat.data",
            "average"),
)
SHUFFLED = sorted(MISTAKES, key=lambda m: crc32(m.name.encode()))


def mistake(name):
    """Let the mistake of that name into the code for the length of a `with`.

    ValueError for a name there is none of, and where the code no longer has the right line.
    """
    for m in MISTAKES:
        if m.name == name:
            return let_in(m)
    raise ValueError(f"no mistake is called {name!r}; there are "
                     f"{', '.join(m.name for m in MISTAKES)}")


def cage(number):
    """Mistake `number`, from 1 to as many as there are, in a `with`, without its name."""
    return let_in(_numbered(number))


@contextmanager
def let_in(m):
    """Any Mistake in a `with`, also one of your own: `wrong` wherever `right` stands."""
    function = _function(m)
    healthy = function.__code__
    function.__code__ = _mutated(function, m)
    try:
        yield
    finally:
        function.__code__ = healthy


def reveal(number):
    """What mistake `number` is: its name, its story and its line, as one text."""
    m = _numbered(number)
    return f"{m.name}\n{m.story}\n{m.where}\n  right: {m.right}\n  wrong: {m.wrong}"


def _numbered(number):
    if not 1 <= number <= len(SHUFFLED):
        raise ValueError(f"the cages are numbered 1 to {len(SHUFFLED)}, got {number}")
    return SHUFFLED[number - 1]


def _function(m):
    """The plain function that m changes, out of its class, property or decorator."""
    found = resolve_name(f"tinydiff.{m.where}")
    found = getattr(found, "fget", None) or getattr(found, "__func__", found)
    return unwrap(found)


def _mutated(function, m):
    """The code of the function with the wrong line in it, its source where inspect looks for it."""
    source = dedent(getsource(function))
    if m.right not in source:
        raise ValueError(f"mistake {m.name!r}: {m.where} no longer has the text {m.right!r}")
    source, file = source.replace(m.right, m.wrong), f"<{m.where}>"
    linecache.cache[file] = len(source), None, source.splitlines(keepends=True), file
    whole = compile(source, file, "exec", dont_inherit=True)
    [body] = [c for c in whole.co_consts if getattr(c, "co_name", "") == function.__name__]
    return body
