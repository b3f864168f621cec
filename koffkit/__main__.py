"""`python -m koffkit`."""

from .cli import main

main()
