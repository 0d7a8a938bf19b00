"""Published models: folders of diffusers and transformers become our own networks and samplers.

Start with folders.py, which tells what a folder holds, then unet.py: a config read, names put
into ours, numbers filled in by weights.py. pipeline.py draws with all parts; export.py leads back.
"""

from tinydiff.pretrained.folders import load, load_model
from tinydiff.pretrained.schedulers import load_scheduler
from tinydiff.pretrained.tokens import load_tokenizer

__all__ = ["load", "load_model", "load_scheduler", "load_tokenizer"]
