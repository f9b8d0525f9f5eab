"""Peak memory of a training step: prediction, batch size, out-of-memory messages."""
