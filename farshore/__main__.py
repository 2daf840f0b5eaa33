"""Entry point of ``python -m farshore``, the same as the command ``farshore``."""

from .cli.main import main

if __name__ == "__main__":
    main()
