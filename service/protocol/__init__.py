"""HTTP itself: parsing, content negotiation, problem documents, middleware."""
