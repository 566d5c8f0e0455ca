"""Files on disk: the only package that knows their names and formats, and how to write them atomically."""
