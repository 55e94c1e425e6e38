"""Tables: methods x tasks x seeds, next to published numbers. Nothing here imports torch before a run starts."""
