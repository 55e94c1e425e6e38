"""What ``import dafw`` offers beside methods, networks and datamodules."""
