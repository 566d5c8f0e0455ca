"""The inference process: trained models behind HTTP, for text and for attention weights."""
