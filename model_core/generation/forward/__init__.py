"""A model in the format that generates fastest, and its forward pass over a KV cache."""
