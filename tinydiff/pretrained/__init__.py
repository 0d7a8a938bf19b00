"""Published models, in folders as diffusers and transformers save them.

Start with folders.py: what a folder holds; tensors.py and weights.py carry the numbers over.
"""

from tinydiff.pretrained.folders import load, load_model
from tinydiff.pretrained.schedulers import load_scheduler
from tinydiff.pretrained.tokens import load_tokenizer

__all__ = ["load", "load_model", "load_scheduler", "load_tokenizer"]
