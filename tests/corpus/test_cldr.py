import json

import pytest

from geminid.corpus import cldr


def write(root, package, key, language, entries):
    path = root / package / key / language / "annotations.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({key: {"annotations": entries} if entries is not None else {}}), encoding="utf-8")


@pytest.fixture
def roots(tmp_path):
    base = {
        "\U0001f415": {"tts": ["Dog"], "default": ["dog", "pet"]},
        "\u2b50\ufe0f": {"tts": ["star"]},
        "\U0001f44b\U0001f3fb": {"tts": ["waving hand: light skin tone"]},
        "\U0001f46e": {"tts": ["police officer(s)"], "default": []},
        "\U0001f9ff": {"default": ["nameless"]},
    }
    derived = {
        "\U0001f468\u200d\U0001f33e": {"tts": ["man farmer"]},
        "\U0001f469\u200d\U0001f33e": {"tts": ["man farmer"]},
    }
    write(tmp_path, "cldr-annotations-full", "annotations", "en", base)
    write(tmp_path, "cldr-annotations-full", "annotations", "en-GB", {})
    write(tmp_path, "cldr-annotations-full", "annotations", "xx", None)  # as some languages are
    write(tmp_path, "cldr-annotations-derived-full", "annotationsDerived", "en", derived)
    return {name: tmp_path / name for name in ("cldr-annotations-full", "cldr-annotations-derived-full")}


def test_code_points_have_one_spelling():
    assert cldr.code_points("\u0023\ufe0f\u20e3") == cldr.normal_code_points("0023-FE0F-20e3") == "23-20e3"
    assert cldr.code_points("\U0001f468\u200d\U0001f33e") == "1f468-200d-1f33e"


def test_annotations_and_ids(roots):
    found = cldr.annotations(roots, "en")
    assert found["1f415"] == cldr.Annotation("Dog", ("dog", "pet"))
    assert found["2b50"].name == "star"
    assert found["1f46e"].name == "police officer"
    assert "1f44b-1f3fb" not in found  # a skin tone
    assert cldr.concept_ids(found) == {
        "1f415": "dog",
        "2b50": "star",
        "1f46e": "police officer",
        "1f468-200d-1f33e": "man farmer",  # the first of two emoji of one name
    }


def test_languages(roots):
    assert cldr.languages(roots) == ["en", "xx"]
    assert cldr.annotations(roots, "xx") == {}
    with pytest.raises(ValueError, match="no names in language 'qq'; it has en, xx"):
        cldr.annotations(roots, "qq")


def test_spelling():
    assert cldr.spell({"dog": "Hund", "key": "Schlüssel", "small": "gelbe Blüte"})["dog"] == "Hund"
    assert cldr.spell({"a": "chien", "b": "Père Noël", "c": "clé"})["b"] == "père noël"
