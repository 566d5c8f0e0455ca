"""Several runs beside each other: what differs in their configurations, curves, heads and attention to one text."""
