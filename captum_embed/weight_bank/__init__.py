"""The weight bank: grad-weights of training images, borrowed by new images of similar embedding.

Five concerns: the bank (``bank``, ``entries``, ``selection``), search in it (``search``,
``index``, ``queries``), its files (``storage``, ``files``), mining of tuples (``mining``,
``tuples``), and building it from a network and images (``build``, ``passes``, ``encoder_runs``,
``images``).
"""

from captum_embed.encoders import encoder_fingerprint
from captum_embed.weight_bank.bank import WeightBank
from captum_embed.weight_bank.build import build_weight_bank
from captum_embed.weight_bank.index import IndexedBank

__all__ = ["IndexedBank", "WeightBank", "build_weight_bank", "encoder_fingerprint"]
