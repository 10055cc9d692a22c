"""`python -m edgevit` is the same as `edgevit`."""

from edgevit.cli import main

if __name__ == "__main__":
    main()
