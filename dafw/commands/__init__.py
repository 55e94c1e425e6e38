"""What the command line does beside runs and tables."""
