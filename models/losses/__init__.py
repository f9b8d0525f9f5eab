"""Losses between pixel embeddings and class embeddings, in memory that does not grow with pixels x classes."""
