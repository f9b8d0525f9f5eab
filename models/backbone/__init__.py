"""Take features of several strides from any timm model."""

LOW_STRIDE = 4
"""Stride of the finest level of every backbone, and of the network's output."""
