"""The portable implementation: a tile of pixels x classes at a time, on any device."""
