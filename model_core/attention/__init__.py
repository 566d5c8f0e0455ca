"""Pictures of attention weights, drawn without torch."""
