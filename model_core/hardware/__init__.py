"""Which hardware a run uses and how well: decisions are pure functions of a description of the machine."""
