import dataclasses
import re

import pytest

from geminid.config import DataConfig
from geminid.corpus.packages import PACKAGES, packages_for


def test_table_is_complete():
    spdx = {"Apache-2.0", "CC-BY-4.0", "CC-BY-SA-4.0", "MIT", "Unicode-3.0", "GPL-2.0-or-later"}
    spdx |= {"CC-BY-SA-3.0", "CC-BY-3.0"}
    for package in PACKAGES.values():
        assert re.fullmatch("[0-9a-f]{64}", package.sha256)
        assert package.registry in ("npm", "debian")
        assert package.licence in spdx
        assert 0 < package.num_bytes < 200e6
    assert len({package.directory for package in PACKAGES.values()}) == len(PACKAGES)


def test_default_downloads_fit_600_mb():
    packages = packages_for(DataConfig())
    assert sum(package.num_bytes for package in packages) <= 600e6
    assert {p.name for p in packages if p.name.startswith("@iconify-json/")} == {
        f"@iconify-json/{style}" for style in DataConfig().styles
    }


def test_only_what_the_config_reads():
    config = DataConfig(styles=("noto", "twemoji"), animation_packages=(), digit_languages=("fr",))
    assert [package.name for package in packages_for(config)] == [
        "@iconify-json/noto",
        "@iconify-json/twemoji",
        "cldr-annotations-full",
        "cldr-annotations-derived-full",
        "tuxpaint-stamps-default",
        "asterisk-core-sounds-fr",
        "asterisk-core-sounds-fr-wav",
    ]


@pytest.mark.parametrize(
    ("field", "value", "named"),
    [
        ("styles", ("noto", "crayon"), "'crayon'"),
        ("digit_languages", ("xx",), "'xx'"),
        ("animation_packages", ("@a/b",), "'@a/b'"),
    ],
)
def test_unknown_names_are_one_line(field, value, named):
    with pytest.raises(ValueError, match=f"data.{field}: unknown {named}; known: ") as error:
        packages_for(dataclasses.replace(DataConfig(), **{field: value}))
    assert "\n" not in str(error.value)
