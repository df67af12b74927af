"""``python -m growpipe``, which is how ``torchrun -m growpipe`` starts its processes."""

from growpipe.cli import main

if __name__ == "__main__":
    main()
