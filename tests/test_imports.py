"""Modules are imported without garbage collection, which goes on as it was before."""

import gc
import sys

import pytest

from hf_ssl.imports import import_modules


@pytest.fixture
def modules(tmp_path, monkeypatch):
    (tmp_path / "first_of_two.py").write_text("import gc\ncollects = gc.isenabled()\n")
    (tmp_path / "second_of_two.py").write_text("import first_of_two\nsaw = first_of_two.collects\n")
    (tmp_path / "fails_at_once.py").write_text("raise ValueError('never')\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("first_of_two", "second_of_two"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("collects", [True, False])
def test_collection_pauses_and_is_then_what_it_was(modules, collects):
    before = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        last = import_modules("first_of_two", "second_of_two")
        assert last.__name__ == "second_of_two" and last.saw is False
        assert gc.isenabled() is collects
        with pytest.raises(ValueError, match="never"):
            import_modules("fails_at_once")
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
