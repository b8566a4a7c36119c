"""The compiled dot products: every length and number of tasks, and what happens without them."""

from pathlib import Path

import pytest
import torch

from gradsurgery.kernels import eager, native

compiled = pytest.mark.skipif(not native.available(), reason="no C compiler")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def _expected(vectors: list[torch.Tensor]) -> torch.Tensor:
    wide = [v.double() for v in vectors]
    return torch.stack([a @ b for i, a in enumerate(wide) for b in wide[i:]])


@compiled
@pytest.mark.parametrize("tasks", [1, 2, 3, 4, 5, 7, 8, 13])
@pytest.mark.parametrize("length", [0, 1, 33, 1023, 1024, 1025, 2049, 100_003])
@pytest.mark.parametrize("dtype", native.DTYPES, ids=str)
def test_products(tasks: int, length: int, dtype: torch.dtype) -> None:
    vectors = [torch.randn(length).to(dtype) for _ in range(tasks)]
    scale = 5e-7 * max(1, length)
    torch.testing.assert_close(native.products(vectors), _expected(vectors), atol=scale, rtol=0)


@compiled
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_share_is_taken_once(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    vectors = [torch.randn(3 * native.SHARE + 17) for _ in range(2)]
    torch.testing.assert_close(native.products(vectors), _expected(vectors), atol=0.05, rtol=1e-8)


@compiled
def test_addresses_between_cache_lines() -> None:
    vectors = [torch.randn(5003)[k + 1 : k + 4999] for k in range(3)]
    torch.testing.assert_close(native.products(vectors), _expected(vectors), atol=1e-4, rtol=0)


@compiled
def test_equal_elements_are_the_worst_case() -> None:
    vector = torch.full((1 << 20,), 0.3337)
    exact = float(vector.double() @ vector.double())
    assert float(native.products([vector])) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_a_compiler_that_fails_is_no_error(
    compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    try:
        with caplog.at_level("INFO", "gradsurgery"):
            assert not native.available()
        assert "torch.dot is used instead" in caplog.text
        columns = [[torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]]
        assert eager.gram(columns, [0], 1, 2).tolist() == [[[5, 11], [11, 25]]]
    finally:
        native._library.cache_clear()


@compiled
def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native._library.cache_clear()
    try:
        assert native.available()
        (library,) = (tmp_path / "gradsurgery").iterdir()
        before = library.stat().st_mtime_ns
        native._library.cache_clear()
        assert native.available()
        assert library.stat().st_mtime_ns == before
    finally:
        native._library.cache_clear()
