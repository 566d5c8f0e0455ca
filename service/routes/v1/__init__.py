"""Routes below /v1, in OpenAI's shape."""
