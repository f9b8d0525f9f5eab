"""Decoders: features of several strides to one map at stride 4."""
