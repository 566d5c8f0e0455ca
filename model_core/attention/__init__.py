"""Attention: capture, statistics and pictures. Only `capture` loads torch."""
