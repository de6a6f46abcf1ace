"""`python -m bolus.cli` is `bolus`."""

from bolus.cli.app import main

if __name__ == "__main__":
    main()
