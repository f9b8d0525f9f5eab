"""Category lists as package data: facts (ids, names), each file with its source. Read by `label_space`."""
