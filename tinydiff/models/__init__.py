"""The networks: Tensors in, Tensors out. Start with blocks.py, then unet.py."""

from tinydiff.models.autoencoder import Autoencoder, AutoencoderConfig
from tinydiff.models.classifier import Classifier, ClassifierConfig
from tinydiff.models.discriminator import Discriminator, adaptive_weight, hinge
from tinydiff.models.noisy_classifier import NoisyClassifier, NoisyClassifierConfig, fit_noisy
from tinydiff.models.quantizer import VQAutoencoder, autoencoder_for
from tinydiff.models.text_encoder import TextEncoder, TextEncoderConfig
from tinydiff.models.text_to_image import TextToImage
from tinydiff.models.tokenizer import Tokenizer
from tinydiff.models.unet import UNet, UNetConfig

__all__ = ["Autoencoder", "AutoencoderConfig", "Classifier", "ClassifierConfig", "Discriminator",
           "NoisyClassifier", "NoisyClassifierConfig", "TextEncoder", "TextEncoderConfig",
           "TextToImage", "Tokenizer", "UNet", "UNetConfig", "VQAutoencoder", "adaptive_weight",
           "autoencoder_for", "fit_noisy", "hinge"]
