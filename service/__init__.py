"""HTTP: routes parse, make one call and return a view. No torch."""
