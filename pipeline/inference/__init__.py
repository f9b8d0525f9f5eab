"""Images in, class maps out: reading pictures, sliding windows, the class search, output files."""
