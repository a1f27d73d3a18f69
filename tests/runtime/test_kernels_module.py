"""Kernels that are not built are one line that names the command, and exit code 4."""

import importlib

import pytest

from commands.program import make_parser, run_program
from runtime.kernels_module import KernelsNotBuiltError, import_kernels


@pytest.fixture
def no_kernels(monkeypatch):
    def fail(name):
        raise ImportError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(importlib, "import_module", fail)
    import_kernels.cache_clear()
    yield
    import_kernels.cache_clear()


def test_kernels_load():
    assert "baseline" in import_kernels().isa_levels()


@pytest.mark.usefixtures("no_kernels")
def test_missing_kernels_name_make_build():
    with pytest.raises(KernelsNotBuiltError, match="run `make build`") as error:
        import_kernels()
    assert isinstance(error.value, ImportError)
    assert "\n" not in str(error.value)


@pytest.mark.usefixtures("no_kernels")
def test_a_command_reports_them_with_exit_code_4(capsys):
    assert run_program(make_parser("prog", "description"), lambda args: {"summary": str(import_kernels())}, []) == 4
    assert capsys.readouterr().err.count("\n") == 1
