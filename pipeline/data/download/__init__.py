"""Download, verify and unpack official archives."""
