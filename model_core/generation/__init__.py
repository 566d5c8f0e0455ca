"""Text out of a trained model: a key-value cache, sampling, and an engine that decodes many requests together."""
