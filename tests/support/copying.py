"""Write a file in capitals beside it: `python -m tests.support.copying ... FILE`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    file = Path(sys.argv[-1])
    file.with_name("out.txt").write_text(file.read_text().upper())
