"""Name everything wrong with a dataset."""
