"""Processes that run jobs: the train worker and the inference process."""
