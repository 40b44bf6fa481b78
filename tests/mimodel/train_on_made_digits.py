"""`mimodel train` in a process of its own, which takes made digits for MNIST's.

`python -m tests.mimodel.train_on_made_digits DIGESTS.json OPTIONS...`
"""

import json
import sys
from pathlib import Path

from mimodel.cli import app
from mimodel.data import mnist

if __name__ == "__main__":
    mnist.FILES.update(json.loads(Path(sys.argv[1]).read_text()))
    app(["train", *sys.argv[2:]])
