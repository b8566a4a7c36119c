"""The cache of the compiled library: what is loaded, what is made anew, and what is said."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from gradsurgery import kernels
from gradsurgery.kernels import compiled

COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

#: Stands for native.c: both functions, and nothing in them.
STUB = "int gram(void) { return 0; } int combine(void) { return 0; }"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache of the test's own, and a source that compiles at once."""
    source = tmp_path / "native.c"
    source.write_text(STUB)
    monkeypatch.setattr(compiled, "SOURCE", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("GRADSURGERY_NATIVE", raising=False)
    compiled.library.cache_clear()
    yield tmp_path / "home" / "gradsurgery"
    compiled.library.cache_clear()


def loaded_again() -> Path | None:
    """Where another process would load the library from."""
    compiled.library.cache_clear()
    library = compiled.library()
    return None if library is None else Path(library._name)


def planted(folder: Path, marker: Path) -> bytes:
    """A library that leaves a mark when it is loaded."""
    source = folder / "planted.c"
    source.write_text(
        f"#include <stdio.h>\n{STUB}\n__attribute__((constructor)) static void run(void) "
        f'{{ fclose(fopen("{marker}", "w")); }}'
    )
    target = folder / "planted.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", source, "-o", target], check=True)
    return target.read_bytes()


@needs_compiler
def test_compiled_once_with_one_line(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = loaded_again()
    assert [path] == list(cache.iterdir())
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("gradsurgery: compiling its CPU kernels")
    assert str(cache) in said[0]
    before = path.stat()
    assert loaded_again() == path
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert capfd.readouterr().err == ""
    if sys.platform != "win32":
        assert not (cache.stat().st_mode | before.st_mode) & 0o077


@needs_compiler
@pytest.mark.parametrize("kept_bytes", [0, 100, 5000])
def test_a_truncated_file_is_made_anew(
    cache: Path, kept_bytes: int, capfd: pytest.CaptureFixture[str]
) -> None:
    path = loaded_again()
    content = path.read_bytes()
    path.unlink()  # this process still has it in its memory
    path.write_bytes(content[:kept_bytes])
    path.chmod(0o700)
    assert loaded_again().read_bytes() == content
    assert len(list(cache.iterdir())) == 1
    assert capfd.readouterr().err.count("compiling") == 2


@needs_compiler
def test_a_file_under_a_name_that_is_not_its_own_is_never_loaded(
    cache: Path, tmp_path: Path
) -> None:
    path = loaded_again()
    marker = tmp_path / "marker"
    path.unlink()
    foreign = cache / f"{path.name.rsplit('-', 1)[0]}-{'0' * 32}.so"
    foreign.write_bytes(planted(tmp_path, marker))
    foreign.chmod(0o700)
    assert loaded_again() == path
    assert not marker.exists()
    assert not foreign.exists()


@needs_compiler
@pytest.mark.parametrize("kind", ["symlink", "writable file"])
def test_what_others_can_change_later_is_never_loaded(
    cache: Path, tmp_path: Path, kind: str
) -> None:
    path = loaded_again()
    marker = tmp_path / "marker"
    content = planted(tmp_path, marker)
    target = cache / compiled._full_name(path.name.rsplit("-", 1)[0], content)
    if kind == "symlink":
        target.symlink_to(tmp_path / "planted.so")
    else:
        target.write_bytes(content)
        target.chmod(0o777)
    path.unlink()
    assert loaded_again() == path
    assert not marker.exists()
    assert not target.exists()


@needs_compiler
@pytest.mark.skipif(sys.platform == "win32", reason="modes say nothing there")
@pytest.mark.parametrize("which", ["folder", "parent", "owner"])
def test_a_folder_that_somebody_else_may_write_is_not_used(
    cache: Path,
    tmp_path: Path,
    which: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = loaded_again()
    marker = tmp_path / "marker"
    content = planted(tmp_path, marker)
    target = cache / compiled._full_name(path.name.rsplit("-", 1)[0], content)
    target.write_bytes(content)
    target.chmod(0o700)
    path.unlink()
    capfd.readouterr()
    if which == "owner":
        monkeypatch.setattr(compiled, "_user", lambda: os.geteuid() + 1)
    else:
        (cache if which == "folder" else cache.parent).chmod(0o777)
    elsewhere = loaded_again()
    assert elsewhere is not None
    assert cache not in elsewhere.parents
    assert not elsewhere.exists()  # it was this process's own
    assert not marker.exists()
    reason = "belongs to another user" if which == "owner" else "chmod go-w"
    assert reason in capfd.readouterr().err


@needs_compiler
def test_a_kept_file_without_the_functions_is_made_anew(cache: Path, tmp_path: Path) -> None:
    path = loaded_again()
    subprocess.run(
        [str(COMPILER), "-shared", "-fPIC", "-x", "c", "/dev/null", "-o", tmp_path / "empty.so"],
        check=True,
    )
    content = (tmp_path / "empty.so").read_bytes()
    empty = cache / compiled._full_name(path.name.rsplit("-", 1)[0], content)
    path.unlink()
    empty.write_bytes(content)
    empty.chmod(0o700)
    assert loaded_again() == path
    assert not empty.exists()


@needs_compiler
def test_a_compiler_whose_work_lacks_the_functions_is_no_error(
    cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    compiled.SOURCE.write_text("int gram(void) { return 0; }")
    assert loaded_again() is None
    assert "plain torch is used" in capfd.readouterr().err
    assert list(cache.iterdir()) == []


@needs_compiler
def test_where_nothing_can_be_kept_a_process_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As on a read-only file system; a file in the way stops root, too."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compiled.available()
    assert "for this process only" in capfd.readouterr().err


@needs_compiler
def test_two_processes_at_once(cache: Path) -> None:
    code = (
        "from pathlib import Path; from gradsurgery.kernels import compiled;"
        f"compiled.SOURCE = Path({str(compiled.SOURCE)!r}); print(compiled.library()._name)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(kernels.__file__).parents[2])}
    both = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    names = {process.communicate(timeout=120)[0].decode().strip() for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert {str(path) for path in cache.iterdir()} >= names
    assert str(loaded_again()) in {str(path) for path in cache.iterdir()}


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_fails_is_no_error(
    compiler: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CC", compiler)
    assert not compiled.available()
    assert "plain torch is used" in capfd.readouterr().err
    columns = [[torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]]
    assert kernels.gram(columns, [0], 1, 2).tolist() == [[[5, 11], [11, 25]]]
