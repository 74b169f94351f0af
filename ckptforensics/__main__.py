"""`python -m ckptforensics` is `ckpt`."""

from ckptforensics.cli.entry import run

if __name__ == "__main__":
    run()
