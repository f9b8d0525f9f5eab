"""Turn annotation files into batches: labels, annotations, layouts, bootstrapping, loading."""
