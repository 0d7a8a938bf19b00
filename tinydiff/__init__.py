"""tinydiff: from a prompt to a picture, from scratch on NumPy.

Two towers stand on one foundation and meet at the top; imports go down only.

     6   cli   commands   demo   report                            what is typed
     5   train    generate    pretrained    predictor    recipe    the stories
     4   models   optim   │   data   images   checkpoint   viz   metrics
     3   nn               │
     2   autograd         │   diffusion                            Tensors │ arrays only
     1   backend   kernels   files   parallel   progress           arrays, files, threads
     0   tinydiff_kernels                                          array in, array out

Read autograd/tensor.py and diffusion/schedule.py first; README has the order of the rest.
Every name below is loaded when it is first used.
"""

from importlib import import_module

from tinydiff._version import __version__

_HOME = {
    "tinydiff.autograd":           ("Tensor", "gradcheck", "no_grad"),
    "tinydiff.kernels":            ("use",),
    "tinydiff.models":             ("Autoencoder", "AutoencoderConfig", "TextEncoder",
                                    "TextEncoderConfig", "TextToImage", "Tokenizer", "UNet",
                                    "UNetConfig"),
    "tinydiff.diffusion":          ("Mixture", "Prediction", "Schedule", "classifier_guided",
                                    "clipped", "composed", "ddim", "ddpm", "ddpm_guided",
                                    "dpmpp_1s", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "edm",
                                    "euler", "euler_ancestral", "flow_euler", "flow_heun",
                                    "guided", "guided_rescaled", "heun", "ideal_predictor",
                                    "image_to_image", "inpainted", "invert", "lcm", "nodes",
                                    "ode_log_likelihood", "pndm", "repaint", "sample", "slerp",
                                    "trace", "unipc", "vlb", "within"),
    "tinydiff.predictor":          ("denoiser", "eps_vjp", "grad_log_prob"),
    "tinydiff.recipe":             ("Recipe", "load_recipe"),
    "tinydiff.generate":           ("Run",),
    "tinydiff.runs":               ("load_run",),
}
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_WHERE]


def __getattr__(name):
    if name == "pretrained":
        return import_module("tinydiff.pretrained")
    if name not in _WHERE:
        raise AttributeError(f"module 'tinydiff' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return value


def __dir__():
    return sorted([*globals(), *_WHERE])
