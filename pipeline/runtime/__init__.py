"""The process and the machine: errors, files, locks, devices, progress, signals, workers."""
