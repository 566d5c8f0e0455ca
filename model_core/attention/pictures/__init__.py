"""Pictures of attention, without torch."""
