"""One training step: model, loss, optimizer, EMA, precision."""
