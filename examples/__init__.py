"""Small programs that use `models` in somebody else's training; each is run by a test."""
