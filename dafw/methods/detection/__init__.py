"""Methods that exist for boxes alone. Each is of its own setting."""
