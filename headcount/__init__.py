"""The command: starts everything on one machine, and talks to a running service."""
