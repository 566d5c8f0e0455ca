"""Who gets a row of the KV cache, and what the model computes next."""
