"""Generate the embedded dataset in the official layout."""
