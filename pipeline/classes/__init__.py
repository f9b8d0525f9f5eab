"""Change the classes of a trained checkpoint: add one from a few pictures, remove, rename."""
