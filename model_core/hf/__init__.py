"""Folders as Hugging Face's transformers reads and writes them, in and out; transformers itself is not needed."""
