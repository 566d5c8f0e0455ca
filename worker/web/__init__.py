"""HTTP that the API and the inference processes share. Torch-free; service imports it."""
