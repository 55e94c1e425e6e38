"""Commands that make no run: ``data``, ``methods``, ``datasets`` and ``new``."""
