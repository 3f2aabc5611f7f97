"""`mobilebert convert` refuses a checkpoint that was made to do harm, in one line."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mobilebert.modeling.foreign.convert import convert
from mobilebert.util.errors import UserError

GOLDEN = Path(__file__).with_name("from_tensorflow")


def copy(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / name, tmp_path / name))


def refused(folder: Path) -> str:
    """Return the error of a conversion, which must write nothing."""
    out = folder.parent / "out"
    with pytest.raises(UserError) as error:
        convert(str(folder), out)
    assert "\n" not in str(error.value)
    assert not out.exists()
    return str(error.value)


# ---- tf_model.h5


@pytest.mark.parametrize("kind", ["external", "link", "virtual", "bomb"])
def test_an_h5_file_gives_only_what_lies_inside_it(kind, tmp_path):
    h5py = pytest.importorskip("h5py")
    folder, other = copy("encoder", tmp_path), tmp_path / "other.h5"
    with h5py.File(folder / "tf_model.h5", "r+") as file:
        group = file["mobilebert"]
        name = next(name for name in group.attrs["weight_names"])
        shape = group[name].shape
        del group[name]
        with h5py.File(other, "w") as secret:
            secret["x"] = np.full(shape, 9, np.float32)
        if kind == "external":
            group.create_dataset(name, shape, "f4", external=[(str(other), 0, h5py.h5f.UNLIMITED)])
        elif kind == "link":
            group[name] = h5py.ExternalLink(str(other), "x")
        elif kind == "virtual":
            layout = h5py.VirtualLayout(shape, "f4")
            layout[...] = h5py.VirtualSource(str(other), "x", shape)
            group.create_virtual_dataset(name, layout)
        else:
            group.create_dataset(name, (10**7, 10**7), "f4", chunks=(1000, 1000), compression="gzip")
    wanted = "larger than the file" if kind == "bomb" else "lies in another file; only weights inside the file are read"
    assert wanted in refused(folder)
