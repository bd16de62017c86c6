"""Pretrain image encoders without labels; publish them so that transformers and timm load them."""

__version__ = "0.1.0"
