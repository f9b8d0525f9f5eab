"""The bootstrapped folder on disk: manifest and shards of masks."""
