"""Routes about what heads do: one module per resource below a run."""
