"""Label spaces: which classes there are, and the official category lists."""
