"""The weight bank: grad-weights of training images, borrowed by new images of similar embedding."""

from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.build import build_weight_bank
from captum_embed.weight_bank.compatibility import encoder_fingerprint

__all__ = ["WeightBank", "build_weight_bank", "encoder_fingerprint"]
