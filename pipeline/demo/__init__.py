"""A page on this machine to try a trained network: drop a photograph, see and ask for its classes."""
