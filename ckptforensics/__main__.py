"""`python -m ckptforensics` is `ckpt`."""

from ckptforensics.cli.main import run

if __name__ == "__main__":
    run()
