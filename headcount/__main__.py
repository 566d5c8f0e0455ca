"""`python -m headcount` is the command `headcount`."""

from headcount.cli import main

main()
