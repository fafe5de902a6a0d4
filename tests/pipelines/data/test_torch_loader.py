import subprocess
import sys
from pathlib import Path

import numpy as np

from pipelines.data.torch_loader import cut


def test_cut_on_paper() -> None:
    image = np.arange(2 * 2 * 3, dtype=np.uint8).reshape(2, 2, 3) + 1
    out = cut(image, np.array([-1, 1, 2, 2, 0], np.int32), 2)
    assert out.tolist() == [[[0] * 3, [0] * 3], [[4, 5, 6], [0] * 3]]
    out = cut(image, np.array([0, 0, 2, 2, 1], np.int32), 2)
    assert out.tolist() == image[:, ::-1].tolist()
    assert cut(image, np.array([5, 5, 2, 2, 0], np.int32), 2).sum() == 0


def test_ffcv_is_imported_only_when_asked_for(mixed: Path) -> None:
    script = (
        "import sys\n"
        "from pipelines.config import DataConfig\n"
        "from pipelines.data import build, fetch, manifest, sources, loaders\n"
        "data = DataConfig(dataset='mixed', resolution=32, batch_size=4, loader='torch')\n"
        "loaders.open_loader(sys.argv[1], 'val', data=data, seed=0).close()\n"
        "assert not {'ffcv', 'numba'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(mixed)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
