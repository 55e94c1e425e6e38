"""What judges a method: metrics by role, evidence for validators, rejection, classes of the target alone."""
