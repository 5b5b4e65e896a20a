"""Where bytes are: object stores and local files."""
