"""One script per claim; each runs alone with `python -m benchmarks.NAME`."""
