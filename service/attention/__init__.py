"""What the routes of attention share: which checkpoint and record a request means, and its views."""
