"""From a configuration to a trained run: the loop, what listens to it, and the test of what came out."""
