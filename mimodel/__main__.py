"""`python -m mimodel`, for launchers such as torchrun that start modules."""

from mimodel.cli import main

if __name__ == "__main__":
    main()
