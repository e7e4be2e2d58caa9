import numpy as np
import pytest
from PIL import Image

from geminid.corpus import stamps
from geminid.corpus.emoji import UndrawableError
from geminid.corpus.stamps import StampMatch


def test_the_checked_table():
    matches = stamps.read_matches()
    concepts = {match.concept for match in matches}
    assert len(concepts) >= 170
    assert len({match.stamp for match in matches}) == len(matches)  # a stamp shows one thing
    assert all(match.shows or match.says for match in matches)
    assert [match.concept for match in matches] == sorted(match.concept for match in matches)
    # senses that a match by word alone gets wrong
    concept_of = {match.stamp: match.concept for match in matches}
    assert concept_of["household/electronics/mouse"] == "computer mouse"
    assert concept_of["animals/mammals/rodents/mouse"] == "mouse"
    assert concept_of["food/fruit/mandarine"] == "tangerine"
    assert not {"vehicles/auto/beetle", "symbols/music/key_flat", "clothes/button"} & set(concept_of)


def test_pictures(tmp_path):
    Image.new("RGB", (40, 20), "red").save(tmp_path / "a.png")
    (tmp_path / "b.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><rect width="9" height="9"/></svg>'
    )
    (tmp_path / "bad.svg").write_text("<svg")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    wide = stamps.picture(tmp_path, "a", 16)
    assert wide is not None and (wide[6:10] == (255, 0, 0)).all() and (wide[:3] == 255).all()
    assert np.all(stamps.picture(tmp_path, "b", 16) == 0)
    assert stamps.picture(tmp_path, "none", 16) is None
    with pytest.raises(UndrawableError):
        stamps.picture(tmp_path, "bad", 16)
    with pytest.raises(ValueError, match=r"picture .*broken.png is broken") as error:
        stamps.picture(tmp_path, "broken", 16)
    assert "\n" not in str(error.value)


def test_descriptions(tmp_path):
    (tmp_path / "cat1.txt").write_text("A cat.\nfr.utf8=Un chat.\npt_BR.utf8=Um gato.\n", encoding="utf-8")
    (tmp_path / "cat2.txt").write_text("A cat!\nfr.utf8=Un chat.\n", encoding="utf-8")
    (tmp_path / "photo.txt").write_text("Felix.\n", encoding="utf-8")
    matches = [
        StampMatch("cat1", "cat", True, True),
        StampMatch("cat2", "cat", True, True),
        StampMatch("photo", "cat", True, False),
    ]
    texts = stamps.descriptions(tmp_path, matches)
    assert texts["en"] == {"cat": ["A cat", "A cat!"]}
    assert texts["fr"] == {"cat": ["Un chat"]}
    assert texts["pt"] == {"cat": ["Um gato"]}


def test_missing_folder_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="is missing: remove the stamps' folder"):
        stamps.stamps_root(tmp_path)
