"""The inference program: trained models behind HTTP, for text and for attention."""
