"""Text generation: continuous batching (Yu et al., "Orca", 2022) over a KV cache."""
