"""Everything that runs jobs: the train worker, and the inference process."""
