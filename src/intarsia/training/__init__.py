"""Learning a stream: each task in six steps."""
