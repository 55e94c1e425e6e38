"""One run: its configuration, its directory, its result, and the commands that make it."""
