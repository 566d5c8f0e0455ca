"""Where documents come from: made, local files, the interpreter's own documentation, the Hugging Face hub."""
