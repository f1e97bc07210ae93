"""``python -m perfuse`` is ``perfuse``."""

from perfuse.cli import main

if __name__ == "__main__":
    main()
