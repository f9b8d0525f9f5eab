"""The embedded dataset, generated in the official layout."""
