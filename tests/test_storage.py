import json
import os
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from purifiers.errors import CheckpointError, ConfigError, MissingFileError
from purifiers.storage import (
    LOCK_FILE,
    atomic_path,
    digest,
    load_tensors,
    locked,
    parse_json,
    parse_yaml,
    save_tensors,
    write_text,
    yaml_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    write_text(target, "old")
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_written_files_have_ordinary_permissions(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "x")
    (tmp_path / "b.txt").write_text("x")
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == stat.S_IMODE((tmp_path / "b.txt").stat().st_mode)


def test_many_threads_write_long_names_at_once_with_ordinary_permissions(tmp_path: Path) -> None:
    names = [f"{i}" + "\N{SNOWMAN}" * 80 + ".png" for i in range(40)]  # 240 bytes and more of the 255 that there are
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda name: write_text(tmp_path / name, name), names))
    (tmp_path / "b.txt").write_text("x")
    ordinary = stat.S_IMODE((tmp_path / "b.txt").stat().st_mode)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in names} == {ordinary}
    assert len(list(tmp_path.iterdir())) == 41


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})

    def no_space(path: Path, content: bytes) -> int:
        with open(path, "wb") as handle:
            handle.write(content[: len(content) // 2])
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(Path, "write_bytes", no_space)
    with pytest.raises(OSError, match="No space left"):
        save_tensors(tmp_path / "w.safetensors", {"a": torch.ones(2)})
    monkeypatch.undo()
    assert load_tensors(tmp_path / "w.safetensors")[0]["a"].tolist() == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1


def test_tensors_and_metadata_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).to(torch.bfloat16), "b": torch.tensor(7), "empty": torch.zeros(0, 2)}
    save_tensors(tmp_path / "t.safetensors", tensors, {"n": [1, "x", None]})
    loaded, metadata = load_tensors(tmp_path / "t.safetensors")
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert metadata == {"n": [1, "x", None]}


def test_the_same_tensors_are_the_same_file(tmp_path: Path) -> None:
    tensors = {
        "b": torch.arange(5, dtype=torch.uint8),
        "a\u00e9": torch.randn(3, 2),
        "half": torch.ones(3, dtype=torch.float16),
    }
    files = [tmp_path / f"{number}.safetensors" for number in range(10)]
    for path in files:
        save_tensors(path, tensors)
    assert len({path.read_bytes() for path in files}) == 1
    read = load_file(files[0])  # by the library itself
    assert all(torch.equal(read[name], tensor) for name, tensor in tensors.items())


def test_every_damage_to_a_tensor_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    save_tensors(path, {"a": torch.randn(50)})
    content = path.read_bytes()
    for damaged in (content[:-1], content[:20], b"", content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match="damaged"):
            load_tensors(path)
    save_tensors(path, {"a": torch.ones(1)}, {"epochs": 12})
    path.write_bytes(path.read_bytes().replace(b": 12}", b": 13}"))
    with pytest.raises(CheckpointError, match="damaged"):
        load_tensors(path)
    with pytest.raises(MissingFileError, match="no weights file"):
        load_tensors(tmp_path / "none.safetensors")


def test_a_reader_sees_the_old_or_the_new_tensors(tmp_path: Path) -> None:
    path, done = tmp_path / "t.safetensors", threading.Event()

    def write() -> None:
        while not done.is_set():
            for number in (0.0, 1.0):
                save_tensors(path, {"a": torch.full((1000,), number)})

    save_tensors(path, {"a": torch.zeros(1000)})
    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert load_tensors(path)[0]["a"].unique().numel() == 1
    finally:
        done.set()
        writer.join()


def test_files_from_elsewhere_load_without_a_checksum(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "t.safetensors")
    assert load_tensors(tmp_path / "t.safetensors")[1] == {}


def test_files_that_would_take_all_memory_or_the_stack_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    laughs = "a: &a [1, 1]\n" + "".join(f"{new}: &{new} [*{old}, *{old}]\n" for old, new in pairwise("abcdefghij"))
    for text, word in ((laughs, "aliases"), ("[" * 100_000, "nested"), ("{a: " * 60 + "}" * 60, "nested")):
        with pytest.raises(ConfigError, match=word):
            parse_yaml(text, "it")
    same = [1]
    assert parse_yaml(yaml_text({"a": same, "b": same}), "it") == {"a": [1], "b": [1]}
    with pytest.raises(CheckpointError, match="recursion"):
        parse_json("[" * 100_000, "it")
    header = b'{"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}'
    (tmp_path / "half-bytes").write_bytes(len(header).to_bytes(8, "little") + header + b"x")
    with pytest.raises(CheckpointError, match="F4"):
        load_tensors(tmp_path / "half-bytes")
    save_tensors(tmp_path / "large", {"a": torch.zeros(9)})
    monkeypatch.setattr("purifiers.storage.LARGEST", 100)
    with pytest.raises(CheckpointError, match="at most 100"):
        load_tensors(tmp_path / "large")


def test_digests_tell_content_apart() -> None:
    a = torch.arange(6.0)
    assert digest(a) == digest(a.clone())
    different = [a, a.view(2, 3), a.double(), a + 1, {"x": a}, {"y": a}, "x", 1, [1], {"x": 1}, None]
    assert len({digest(item) for item in different}) == len(different)
    assert digest("a", "b") != digest("ab")
    assert digest({"x": a, "y": a + 1}) == digest({"y": a + 1, "x": a})


def test_digest_of_json_does_not_depend_on_key_order() -> None:
    assert digest(json.loads('{"a": 1, "b": 2}')) == digest(json.loads('{"b": 2, "a": 1}'))


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    tied = torch.arange(4.0)
    save_tensors(tmp_path / "w.safetensors", {"a": tied, "b": tied, "c": tied[1:]})
    tensors, _ = load_tensors(tmp_path / "w.safetensors")
    assert [tensors[name].tolist() for name in "abc"] == [[0, 1, 2, 3], [0, 1, 2, 3], [1, 2, 3]]


def test_the_lock_is_of_a_file_open_for_writing(tmp_path: Path) -> None:
    """On NFS only such a lock reaches other machines (flock(2))."""
    fcntl = pytest.importorskip("fcntl", reason="this system has no such locks")
    with locked(tmp_path), open(tmp_path / LOCK_FILE, "rb+") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with locked(tmp_path), locked(tmp_path / "other"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_threads_that_wait_for_a_folder_work_in_it_one_after_the_other(tmp_path: Path) -> None:
    pytest.importorskip("fcntl", reason="this system has no such locks")
    inside = 0

    def work(_: int) -> None:
        nonlocal inside
        for _ in range(20):
            with locked(tmp_path, wait=True):
                inside += 1
                assert inside == 1
                time.sleep(0.0005)
                inside -= 1

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
