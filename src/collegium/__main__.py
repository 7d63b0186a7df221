"""`python -m collegium`, and what `torchrun -m collegium` runs."""

from collegium.cli.app import main


if __name__ == "__main__":
    raise SystemExit(main())
