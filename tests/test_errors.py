import pytest

from purifiers.errors import ConfigError, require


def test_what_is_missing_is_told_with_how_to_get_it(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=r"needs no_such_library, which is not installed: pip install 'purifiers\[app\]'"):
        require("no_such_library.part", extra="app")
    assert require("html", extra="app").escape("<") == "&lt;"
    # A library that is there but lacks something else is not called missing.
    (tmp_path / "half_there.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_library"):
        require("half_there", extra="app")
