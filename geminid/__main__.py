"""`python -m geminid` is the command `geminid`."""

from geminid.cli import main

if __name__ == "__main__":
    main()
