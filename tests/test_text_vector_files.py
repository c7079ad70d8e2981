# Copyright 2026 The PixCLIP Authors. Licensed under the Apache License, Version 2.0 (see LICENSE).
"""The files of text vectors: no row lost, none torn, whatever is killed, damaged, or written by two at once."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import tracemalloc
import warnings

import numpy as np
import pytest

from modeling_pixclip.text_vector_files import TextVectorFiles, text_hash, write_description


WIDTH = 4
# Its hash ends in a zero byte, which numpy takes for the end of a string.
ENDS_IN_ZERO = next(f"caption {i}" for i in range(10_000) if text_hash(f"caption {i}")[-1] == 0)
TEXTS = ["a red kite", "Ein blauer Drachen über dem Meer", "一只风筝", ENDS_IN_ZERO, "two\nlines"]
# Forked processes run numpy alone, no threads.
fork = multiprocessing.get_context("fork")


def vector_of(text, width=WIDTH):
    """A vector that only this text has."""
    seed = int.from_bytes(text_hash(text)[:8], "little")
    return np.random.default_rng(seed).random(width, dtype=np.float32).astype("<f2")


def open_files(folder, width=WIDTH):
    return TextVectorFiles(folder, row_bytes=2 * width)


def add(files, texts):
    files.add(texts, np.stack([vector_of(text) for text in texts]))


def check(files, texts):
    assert files.contains(texts).all()
    for text in texts:
        np.testing.assert_array_equal(files.get(text).view("<f2"), vector_of(text))


def segments(folder):
    return sorted(path for path in folder.iterdir() if path.name.startswith("segment-"))


def hidden(folder):
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def test_rows_come_back(tmp_path):
    files = open_files(tmp_path / "files")
    assert len(files) == 0 and files.get("a red kite") is None and list(files.texts()) == []
    add(files, TEXTS[:2])
    add(files, TEXTS[2:])
    for opened in (files, open_files(tmp_path / "files")):
        check(opened, TEXTS)
        assert len(opened) == len(TEXTS) and sorted(opened.texts()) == sorted(TEXTS)
        assert opened.contains([TEXTS[0], "never added", " two\nlines "]).tolist() == [True, False, True]
        assert opened.get("never added") is None


def test_many_small_additions_leave_few_segments(tmp_path):
    files = open_files(tmp_path)
    texts = [f"text {i}" for i in range(80)]
    for text in texts:
        add(files, [text])
    # At most seven of a size: 64, 8 and 8 of them, for 80.
    assert len(segments(tmp_path)) == 3 and not hidden(tmp_path)
    check(files, texts)
    check(open_files(tmp_path), texts)
    assert len(files) == 80 and sorted(files.texts()) == sorted(texts)


def test_a_text_that_is_there_twice_counts_once(tmp_path):
    one, other = open_files(tmp_path), open_files(tmp_path)
    add(one, TEXTS)
    add(other, TEXTS[:3])
    files = open_files(tmp_path)
    assert len(segments(tmp_path)) == 2 and len(files) == len(TEXTS)
    assert sorted(files.texts()) == sorted(TEXTS)
    for i in range(6):
        add(files, [f"text {i}"])
    check(files, TEXTS)
    assert len(files) == len(TEXTS) + 6 and sum(1 for _ in files.texts()) == len(TEXTS) + 6


def test_a_reader_keeps_reading_while_its_segments_are_merged(tmp_path):
    writer = open_files(tmp_path)
    add(writer, TEXTS)
    reader, before = open_files(tmp_path), segments(tmp_path)
    for i in range(7):
        add(writer, [f"{i} {j}" for j in range(5)])
    assert not set(before) & set(segments(tmp_path))
    check(reader, TEXTS)
    assert not reader.contains(["6 0"])[0]
    reader.refresh()
    check(reader, [*TEXTS, "6 0"])


def test_no_damage_whatever_returns_a_wrong_vector(tmp_path):
    """Every file is cut at every length and has every byte flipped."""
    files = open_files(tmp_path / "sound")
    add(files, TEXTS)
    [segment] = segments(tmp_path / "sound")
    folder = tmp_path / "damaged"
    damages = 0
    for file in sorted(segment.iterdir()):
        content = file.read_bytes()
        cuts = [content[:length] for length in range(len(content))]
        flips = [content[:i] + bytes([content[i] ^ 0x55]) + content[i + 1 :] for i in range(len(content))]
        for damaged in [None, *cuts, *flips]:
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(tmp_path / "sound", folder)
            broken = folder / segment.name / file.name
            broken.unlink() if damaged is None else broken.write_bytes(damaged)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                files = open_files(folder)
                found = files.contains(TEXTS)
                vectors = [files.get(text) for text in TEXTS]
            for text, there, vector in zip(TEXTS, found, vectors):
                assert there == (vector is not None)
                if there:
                    np.testing.assert_array_equal(vector.view("<f2"), vector_of(text))
            if not found.all():
                damages += 1
                assert len(caught) == 1 and "damaged" in str(caught[0].message)
                assert files.damaged["segments"] == 1 or files.damaged["vectors"] == len(TEXTS) - found.sum()
                assert len(files) == found.sum()
                assert sorted(files.texts()) == sorted(text for text, there in zip(TEXTS, found) if there)
                if damages % 16:
                    continue
                lacking = [text for text, there in zip(TEXTS, found) if not there]
                files.repair()
                add(files, lacking)
                mended = open_files(folder)
                check(mended, TEXTS)
                assert not mended.damaged and len(mended) == len(TEXTS) and not hidden(folder)
    assert damages > 500


def test_rows_before_a_cut_stay(tmp_path):
    files = open_files(tmp_path)
    add(files, [f"text {i}" for i in range(100)])
    [segment] = segments(tmp_path)
    with open(segment / "vectors", "r+b") as file:
        file.truncate(60 * 2 * WIDTH - 1)
    with pytest.warns(UserWarning, match="damaged"):
        files = open_files(tmp_path)
        assert files.contains([f"text {i}" for i in range(100)]).sum() == 59
    assert files.damaged == {"vectors": 41}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert files.contains([f"text {i}" for i in range(100)]).sum() == 59
    assert files.damaged == {"vectors": 41}


def write_range(folder, start, stop, size):
    files = open_files(folder)
    texts = [f"text {i}" for i in range(start, stop)]
    for i in range(0, len(texts), size):
        add(files, texts[i : i + size])


def test_two_writers_and_a_reader(tmp_path):
    open_files(tmp_path)
    writers = [fork.Process(target=write_range, args=(tmp_path, *span, 3)) for span in ((0, 300), (100, 400))]
    for writer in writers:
        writer.start()
    reader, seen = open_files(tmp_path), set()
    texts = np.array([f"text {i}" for i in range(400)])
    while any(writer.is_alive() for writer in writers):
        reader.refresh()
        now = set(texts[reader.contains(texts)])
        # What a merge replaces is never gone for a moment.
        assert seen <= now
        seen = now
        check(reader, sorted(seen)[::50])
    assert [writer.exitcode for writer in writers] == [0, 0]
    files = open_files(tmp_path)
    check(files, texts.tolist())
    assert len(files) == 400 and not files.damaged and not hidden(tmp_path)
    # Both may have merged the same segments, which leaves their rows twice, but not without bound.
    assert len(segments(tmp_path)) <= 28


def test_a_killed_writer_loses_only_what_was_in_work(tmp_path):
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(5):
        writer = fork.Process(target=write_range, args=(tmp_path, 0, 1000, 2))
        target = len(open_files(tmp_path)) + int(rng.integers(5, 60))
        writer.start()
        files = open_files(tmp_path)
        while len(files) < target and writer.is_alive():
            files.refresh()
        writer.kill()
        writer.join()
        # Writers start from the first text again, so most of what they add is there twice.
        files = open_files(tmp_path)
        assert len(files) >= max(kept, target) and not files.damaged
        kept = len(files)
        check(files, list(files.texts()))


def test_what_killed_writers_left_is_removed_later(tmp_path):
    files = open_files(tmp_path)
    add(files, TEXTS)
    for name in (".writing-live", ".writing-dead", ".removed-dead"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "vectors").write_bytes(b"half")
    (tmp_path / ".writing-file").write_bytes(b"")
    two_days_ago = time.time() - 2 * 24 * 3600
    for path in (tmp_path / ".writing-dead", tmp_path / ".writing-dead" / "vectors"):
        os.utime(path, (two_days_ago, two_days_ago))
    files.repair()
    assert sorted(path.name for path in hidden(tmp_path)) == [".writing-file", ".writing-live"]
    check(files, TEXTS)


@pytest.mark.parametrize("name", ["segment-notes.txt", "segment-backup", "notes"])
def test_entries_under_other_names_are_left_alone(tmp_path, name):
    add(open_files(tmp_path), TEXTS)
    if name.endswith("backup"):
        shutil.copytree(segments(tmp_path)[0], tmp_path / name)
    else:
        (tmp_path / name).write_text("mine")
    files = open_files(tmp_path)
    files.repair()
    add(files, ["one more"])
    check(files, [*TEXTS, "one more"])
    assert len(files) == len(TEXTS) + 1 and not files.damaged and (tmp_path / name).exists()


def replace_by_file(segment):
    shutil.rmtree(segment)
    segment.write_bytes(b"")


def replace_by_folder(file):
    file.unlink()
    (file / "folder").mkdir(parents=True)
    (file / "folder" / "file").write_bytes(b"content")


def put_folder_beside_damage(segment):
    (segment / "folder" / "folder").mkdir(parents=True)
    (segment / "segment.json").write_text("{")


def drop_all_rows(segment):
    """What the checksums cannot tell from a sound segment."""
    for file in segment.iterdir():
        file.write_bytes(b"")
    (segment / "segment.json").write_text(json.dumps({"rows": 0, "hashes_crc32": 0, "rows_crc32": 0}))


@pytest.mark.parametrize(
    "damage",
    [
        replace_by_file,
        put_folder_beside_damage,
        drop_all_rows,
        lambda segment: replace_by_folder(segment / "segment.json"),
        lambda segment: replace_by_folder(segment / "hashes"),
        lambda segment: replace_by_folder(segment / "vectors"),
    ],
    ids=["segment is a file", "folder inside", "no rows", "header is a folder", "hashes are", "vectors are"],
)
def test_a_segment_that_is_none_is_damaged_and_goes(tmp_path, damage):
    files = open_files(tmp_path)
    add(files, TEXTS[:2])
    [segment] = segments(tmp_path)
    add(files, TEXTS[2:])
    damage(segment)
    with pytest.warns(UserWarning, match="damaged"):
        files = open_files(tmp_path)
    assert files.damaged == {"segments": 1} and files.contains(TEXTS).tolist() == [False, False, True, True, True]
    assert files.get(TEXTS[0]) is None and len(files) == 3
    files.repair()
    assert not segment.exists() and not hidden(tmp_path)
    add(files, TEXTS[:2])
    check(open_files(tmp_path), TEXTS)


class DiskSpy:
    """What is on the disk for sure, and what is renamed when: by inode, in the order of the calls."""

    def __init__(self, monkeypatch):
        self.events = []
        for name in ("fsync", "rename", "replace"):
            monkeypatch.setattr(os, name, getattr(self, name)(getattr(os, name)))

    def state(self, path_or_descriptor):
        found = os.stat(path_or_descriptor)
        return found.st_ino, found.st_size

    def fsync(self, original):
        def fsync(descriptor):
            original(descriptor)
            self.events.append(("synced", self.state(descriptor)))

        return fsync

    def rename(self, original):
        def rename(source, target):
            whole = [source, *source.iterdir()] if source.is_dir() else [source]
            moved = {path.name: self.state(path) for path in whole}
            original(source, target)
            self.events.append(("renamed", target, moved))

        return rename

    replace = rename

    def check(self, target):
        """All that was renamed to `target` was synced at its full size before, and the folder it is in afterwards."""
        [place] = [i for i, event in enumerate(self.events) if event[:2] == ("renamed", target)]
        before, after = self.events[:place], self.events[place + 1 :]
        moved = self.events[place][2]
        for name, state in moved.items():
            assert ("synced", state) in before, f"{name} was not synced before the rename"
        synced_later = [event[1][0] for event in after if event[0] == "synced"]
        assert os.stat(target.parent).st_ino in synced_later, "the folder was not synced after the rename"
        return set(moved)


def test_rows_are_on_the_disk_before_they_appear_and_stay_there(tmp_path, monkeypatch):
    spy = DiskSpy(monkeypatch)
    files = open_files(tmp_path)
    add(files, TEXTS)
    [segment] = segments(tmp_path)
    names = {"hashes", "rows", "texts", "vectors", "segment.json"}
    assert names < spy.check(segment)
    # A merge does the same, before it removes what it merges.
    merged = segments(tmp_path)
    for i in range(7):
        add(files, [f"{i} {j}" for j in range(5)])
        merged += [path for path in segments(tmp_path) if path not in merged]
    [result] = segments(tmp_path)
    assert names < spy.check(result)
    renamed = [event[1] for event in spy.events if event[0] == "renamed"]
    assert renamed.index(result) < min(i for i, path in enumerate(renamed) if path.name.startswith(".removed-"))


def test_descriptions_are_on_the_disk_before_they_appear_and_stay_there(tmp_path, monkeypatch):
    spy = DiskSpy(monkeypatch)
    write_description(tmp_path / "store.json", {"width": 4})
    assert spy.check(tmp_path / "store.json") == {"store.json"}
    assert json.loads((tmp_path / "store.json").read_text()) == {"width": 4}


def test_a_full_disk_leaves_nothing_half_written(tmp_path):
    files = open_files(tmp_path)
    add(files, TEXTS)

    def write_too_much():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            add(open_files(tmp_path), [f"text {i}" for i in range(1000)])
        except OSError:
            os._exit(17)

    writer = fork.Process(target=write_too_much)
    writer.start()
    writer.join()
    assert writer.exitcode == 17 and not hidden(tmp_path)
    files = open_files(tmp_path)
    check(files, TEXTS)
    assert len(files) == len(TEXTS)


READ_IN_A_FRESH_PROCESS = """
import re, sys
from pathlib import Path
import numpy as np
from modeling_pixclip.text_vector_files import TextVectorFiles

def own_memory():
    return 1024 * int(re.search(r"Anonymous: +(\\d+) kB", open("/proc/self/smaps_rollup").read()).group(1))

TextVectorFiles(Path(sys.argv[3]), 32).contains(["warm up"])
before = own_memory()
files = TextVectorFiles(Path(sys.argv[1]), 32)
count = int(sys.argv[2])
for i in np.random.default_rng(0).integers(0, count, 5000):
    assert files.get(f"the caption with the number {i}").view("<f2")[0] == i % 2048
assert files.contains([f"the caption with the number {i}" for i in range(2000)]).all()
print(own_memory() - before)
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="reads Linux's /proc/self/smaps_rollup")
@pytest.mark.parametrize("count", [120_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_number_of_rows(tmp_path, count):
    folder = tmp_path / "files"
    files = open_files(folder, width=16)
    for start in range(0, count, count // 8):
        numbers = np.arange(start, start + count // 8)
        vectors = np.repeat((numbers % 2048).astype("<f2")[:, None], 16, axis=1)
        texts = [f"the caption with the number {i}" for i in numbers]
        if start + len(numbers) < count:
            files.add(texts, vectors)
    assert len(segments(folder)) == 7
    tracemalloc.start()
    files.add(texts, vectors)
    del texts, vectors, numbers
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(segments(folder)) == 1
    [segment] = segments(folder)
    size = sum(file.stat().st_size for file in segment.iterdir())
    assert size > 80 * count
    # The eighth addition merges all; it holds its own rows and a part of the others.
    assert peak < size / 2 + 20e6
    (tmp_path / "empty").mkdir()
    run = subprocess.run(
        [sys.executable, "-c", READ_IN_A_FRESH_PROCESS, folder, str(count), tmp_path / "empty"],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    grown = int(re.search(r"-?\d+", run.stdout).group())
    assert grown < 2e6, f"{grown} of {size} bytes"
