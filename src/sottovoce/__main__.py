"""Run the command as `python -m sottovoce`."""

from sottovoce.cli.main import main

if __name__ == "__main__":
    main()
