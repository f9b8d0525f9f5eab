"""Read and write the bootstrapped folder: manifest and shards of masks."""
