"""Sources of documents: generated stories, Python's documentation, local files and the Hugging Face hub."""
