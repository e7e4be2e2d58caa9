import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from geminid.corpus import store


def test_random_access_gives_back_what_was_written(tmp_path):
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    random = np.random.default_rng(0)
    arrays = [random.integers(-(2**15), 2**15, size, dtype=np.int16) for size in (1, 17, 4000, 3)]
    writer = store.RecordWriter(tmp_path / "x.array_record")
    for array in arrays:
        writer.write(array[::-1])  # not contiguous
    writer.close()
    source = ArrayRecordDataSource([str(tmp_path / "x.array_record")])
    for i in (2, 0, 3, 1):
        assert (np.frombuffer(source[i], np.int16) == arrays[i][::-1]).all()


def test_threads_read_the_same(small_dataset):
    order = list(range(len(small_dataset.pictures))) * 20
    alone = [small_dataset.picture(i).tobytes() for i in order]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda i: small_dataset.picture(i).tobytes(), order))
    assert alone == together


def test_not_a_data_set(tmp_path):
    with pytest.raises(ValueError, match="is not a built data set"):
        store.open_dataset(tmp_path)


@pytest.mark.parametrize("damage", ["half an index", "no records"])
def test_a_damaged_data_set_is_one_line(small_dataset, tmp_path, damage):
    copy = tmp_path / "copy"
    shutil.copytree(small_dataset.path, copy)
    if damage == "half an index":
        text = (copy / store.INDEX).read_text(encoding="utf-8")
        (copy / store.INDEX).write_text(text[: len(text) // 2], encoding="utf-8")
    else:
        (copy / "pictures.array_record").unlink()
    with pytest.raises(ValueError, match="run `geminid data build` again") as error:
        store.open_dataset(copy)
    assert "\n" not in str(error.value)


def test_json_is_whole_or_absent(tmp_path):
    store.write_json(tmp_path / "a.json", {"é": 1})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": 1}
    with pytest.raises(TypeError):
        store.write_json(tmp_path / "a.json", {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"é": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
