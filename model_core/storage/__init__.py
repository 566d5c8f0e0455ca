"""What lies on disk: the only owner of file names, formats and atomic writes."""
