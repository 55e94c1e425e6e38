"""Domain adaptation and generalisation on PyTorch Lightning."""

__version__ = "0.1.0"
