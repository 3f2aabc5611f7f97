import gzip
import json
import lzma

import pandas as pd
import pytest

from mobilebert.data.documents import read_documents
from mobilebert.util.errors import UserError

TEXTS = ["one\ntwo", "three é", "four"]
LINES = "one\ntwo\n\n \nthree é\n\nfour".encode()
ROWS = "".join(json.dumps({"id": number, "text": text}) + "\n" for number, text in enumerate(TEXTS)).encode()
FILES = {
    "a.txt": LINES,
    "a.txt.xz": lzma.compress(LINES),
    "a.txt.gz": gzip.compress(LINES),
    "a.jsonl": ROWS,
    "bom.txt": b"\xef\xbb\xbf" + LINES,
    "bom.jsonl": b"\xef\xbb\xbf" + ROWS,
    "a.jsonl.xz": lzma.compress(ROWS),
    "a.jsonl.gz": gzip.compress(ROWS),
}


@pytest.mark.parametrize("name", [*FILES, "a.parquet"])
def test_every_format_gives_the_documents_and_the_share_read(tmp_path, name):
    path = tmp_path / name
    if name in FILES:
        path.write_bytes(FILES[name])
    else:
        pd.DataFrame({"id": range(3), "text": TEXTS}).to_parquet(path)
    documents, shares = zip(*read_documents(path))
    assert list(documents) == TEXTS
    assert list(shares) == sorted(shares)
    assert 0 < shares[0] <= shares[-1] == 1


def test_unreadable_files_are_refused_in_one_line(tmp_path):
    def refused(name, content, message):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            list(read_documents(tmp_path / name))
        assert "\n" not in str(error.value)

    refused("a.jsonl", ROWS + b'{"text": " "}\n', r"a\.jsonl: row 4 has no text")
    refused("b.jsonl", ROWS + b"{\n", r"b\.jsonl: row 4 has no text")
    refused("c.txt.gz", FILES["a.txt.gz"][:-9], r"c\.txt\.gz: cannot be read")
    damaged = bytearray(gzip.compress(bytes(range(256)) * 9))
    damaged[10:20] = b"\xff" * 10  # in the first block, after a header of 10 bytes
    refused("i.txt.gz", bytes(damaged), r"i\.txt\.gz: cannot be read \(error: Error -3 while decompressing")
    refused("j.jsonl", ROWS + b'{"text": "\\ud800"}\n', r"j\.jsonl: row 4 has half of a surrogate pair")
    refused("d.txt.xz", b"no xz", r"d\.txt\.xz: cannot be read")
    refused("e.txt", b"caf\xe9", r"e\.txt: cannot be read .*utf-8")
    refused("f.parquet", b"PAR1", r"f\.parquet: cannot be read")
    for name, table, message in (
        ("g", {"body": ["a"]}, "no column text; there: body"),
        ("h", {"text": ["a", None]}, "row 2 has"),
    ):
        pd.DataFrame(table).to_parquet(tmp_path / name)
        refused(f"{name}.parquet", (tmp_path / name).read_bytes(), message)
