"""``python -m farshore`` is the command ``farshore``."""

from .cli.main import main

if __name__ == "__main__":
    main()
