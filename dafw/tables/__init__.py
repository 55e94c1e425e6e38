"""Tables: methods x tasks x seeds, with published numbers beside. Nothing here imports torch before a run starts."""
