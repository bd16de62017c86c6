"""Pretrain image encoders without labels; publish them so that transformers and timm load them.

Importing the package registers its methods with transformers' Auto classes and `resnet18_cifar` (34, 50) with timm.
"""

__version__ = "0.1.0"

from hf_ssl.methods import METHODS
from hf_ssl.methods.base import SSLConfig, SSLOutput, SSLPreTrainedModel

__all__ = ["METHODS", "SSLConfig", "SSLOutput", "SSLPreTrainedModel", "__version__"]
