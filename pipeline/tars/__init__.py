"""A tar as a stream of samples."""
