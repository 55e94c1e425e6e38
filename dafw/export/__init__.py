"""A trained model for other programs: one graph from images to probabilities, with weights and a card."""
