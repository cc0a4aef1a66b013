"""The command line: `python -m app COMMAND`, or `oddigit COMMAND` where the package is installed."""

from app.cli.commands import main

if __name__ == "__main__":
    main()
