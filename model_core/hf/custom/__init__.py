"""Code that is copied into exported folders and runs there, on top of transformers; nothing here imports it."""
