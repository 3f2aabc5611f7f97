"""The example of docs/tensorflow.md runs from text to a TensorFlow Lite file."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs/tensorflow.md"


def test_the_example_learns_and_its_file_agrees(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (program,) = re.findall(r"^```python\n(.*?)^```$", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    exec(compile(program, DOCUMENT.name, "exec"), {})
    printed = capsys.readouterr().out
    assert "right: 1.0" in printed
    assert float(re.search(r"differs by (\S+)", printed)[1]) < 1e-4
    assert (tmp_path / "film/model.safetensors").is_file()
