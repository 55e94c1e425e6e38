"""``python -m dafw``."""

from dafw.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
