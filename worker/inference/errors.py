"""Errors of the inference process, and the HTTP status of every code that can leave it."""

from __future__ import annotations
