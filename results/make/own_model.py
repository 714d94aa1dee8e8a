"""Makes own_model.png: what README's lines on a model of one's own draw.

python results/make/own_model.py
"""

import re
import runpy
import shutil
import tempfile
from contextlib import chdir
from pathlib import Path

from networks import INTO, RESULTS


def main() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (RESULTS.parent / "README.md").read_text(), flags=re.DOTALL)
    (code,) = (block for block in blocks if ".plot(" in block)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        Path("lines.py").write_text(code)
        runpy.run_path("lines.py")
        (drawn,) = Path().glob("*.png")
        shutil.copyfile(drawn, INTO / "own_model.png")


if __name__ == "__main__":
    main()
