"""`python -m thumbtune`."""

from thumbtune.cli import main

if __name__ == "__main__":
    main()
