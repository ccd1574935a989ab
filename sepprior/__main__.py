"""`python -m sepprior`: the same program as `sepprior`."""

from sepprior.cli import main

if __name__ == "__main__":
    main(prog_name="sepprior")
