"""Functions and modules of tensors: backbone, decoder, heads, losses, nearest-class search."""
