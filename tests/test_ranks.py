"""Processes that a launcher started: one that dies ends the others with its cause, and orphans end themselves."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks import SHAPES, make_benchmark
from test_resume import counted, read

from clearclip import text
from clearclip.cli import eval, reporting, table
from clearclip.errors import UserError
from clearclip.evaluation import evaluate, mmseg, ranks  # noqa: F401, imported once, before processes fork
from clearclip.evaluation.confusion import Confusion
from clearclip.evaluation.ranks import Ranks
from clearclip.evaluation.records import Records
from clearclip.evaluation.shards import Share

pytestmark = [pytest.mark.skipif(not hasattr(os, "fork"), reason="processes fork here")]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(ranks, "BEAT", 0.05)
    monkeypatch.setattr(ranks, "SILENT", 1.0)
    monkeypatch.setattr(ranks, "LATE", 2.0)


def rank(index, count=2, parent=None, folder="records"):
    return Ranks(Path(folder), Share(), Share(index, count), os.getppid() if parent is None else parent)


def until(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_who_lives_and_ends_well_is_no_fault(quick):
    with rank(0) as first:
        with rank(1):
            for _ in range(3):
                assert first.failures() == {}
                time.sleep(0.5)
        time.sleep(1.2)
        assert first.failures() == {}
    assert not list(Path("records").iterdir())


def test_who_dies_is_named(quick):
    with rank(0) as first:
        second = rank(1).__enter__()
        first.failures()
        second._stop.set()  # as SIGKILL would
        until(lambda: time.monotonic() - first._heard[1].at > 1.1)
        with pytest.raises(UserError, match="process 2 of 2 has given no sign of life for 1 seconds: what was counted"):
            first.failures()


def test_who_ends_with_an_error_gives_its_cause(quick):
    with rank(0) as first:
        second = rank(1).__enter__()
        first.failures()
        second.__exit__(UserError, UserError("no disk"), None)
        with pytest.raises(UserError, match=r"process 2 of 2 has ended \(no disk\): what was counted is kept"):
            first.failures()


def test_who_never_begins_is_named_and_an_earlier_run_is_no_sign_of_life(quick):
    with pytest.raises(UserError), rank(1):
        raise UserError("in an earlier run")
    with rank(0) as first:
        assert first.failures() == {}
        time.sleep(2.1)
        with pytest.raises(UserError, match="process 2 of 2 has not begun within 2 seconds"):
            first.failures()


def test_a_run_that_fails_in_one_process_fails_in_the_job(quick):
    with rank(0, 3) as first, rank(1, 3) as second, rank(2, 3):
        second.fail(4, "image a.jpg is not a picture")
        assert first.failures() == {4: "image a.jpg is not a picture"}
    with rank(0, 3) as first:
        assert first.failures() == {}  # what an earlier job said


def test_who_records_a_run_as_another_is_known_even_when_it_is_done(quick):
    with rank(0, 3) as first:
        with rank(1, 3) as second, rank(2, 3) as third:
            second.tell(0, "same")
            third.tell(0, "same")
            third.tell(1, "other")
        assert first.disagreeing(0, "same") == {}
        assert first.disagreeing(1, "same") == {2: "other"}
        assert first.disagreeing(2, "same") == {}
    with rank(0, 3) as first:
        time.sleep(0.3)
        assert first.disagreeing(1, "same") == {}  # what was told in an earlier job


def test_who_is_done_does_not_wait_for_a_rank_0_that_is_gone(quick):
    began = time.monotonic()
    with rank(1) as second:
        with rank(0):
            time.sleep(0.3)
        second.tell(0, "key")
    assert time.monotonic() - began < 1  # of `SILENT`
    began = time.monotonic()
    with rank(1) as second:
        second.tell(0, "key")
    assert time.monotonic() - began < 5  # of one that never came


def test_nobody_starts_before_rank_0_says_so(quick):
    with rank(1) as second:  # first, as it may happen
        assert not second._may_start(0)
        with rank(0) as first:
            time.sleep(0.3)
            assert not second._may_start(0)
            first.start(0)
            second.start(0)
            assert not second._may_start(1)
            first.start(1)
            second.start(1)
        with rank(0):  # another job's
            until(lambda: not second._may_start(1))


@pytest.mark.parametrize("content", ["", "{", "[]", "\0\xff", '"x"'])
def test_what_is_being_written_is_no_news(content, quick):
    with rank(0) as first:
        (Path("records") / "2-of-2.alive").write_text(content)
        assert first.failures() == {}
        with rank(1):
            until(lambda: first._heard[1].alive or first.failures())


def test_an_orphan_ends_itself(quick):
    pid = os.fork()
    if not pid:
        with rank(1, parent=1 << 22):
            time.sleep(20)
        os._exit(0)
    began = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGTERM
    assert time.monotonic() - began < 10


# Evaluations


@pytest.fixture
def prompt(monkeypatch):
    monkeypatch.setattr(ranks, "BEAT", 0.2)
    monkeypatch.setattr(ranks, "SILENT", 6.0)


@pytest.fixture
def arguments(tiny_folder, tmp_path, monkeypatch):
    make_benchmark(tmp_path / "data", "voc20")
    monkeypatch.setenv("CLEARCLIP_DATA", str(tmp_path / "data"))
    settings = ["templates=single", "short_side=64", "crop=64", "stride=32"]
    return [
        "--backbone", f"local-dir:{tiny_folder}", "--device", "cpu", "--cfg-options",
        *(f"model.{setting}" for setting in settings), "test_dataloader.batch_size=1",
    ]  # fmt: skip


def start(argv, index=0, count=1, main=eval.main, before=lambda: None):
    """A process of a job, which says what it says into `said<index>.txt`."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        torch.set_num_threads(1)
        os.environ |= {"RANK": str(index), "WORLD_SIZE": str(count)}
        reporting.PARENT, reporting.TOLD_SECONDS = os.getppid(), 0.5
        sys.stderr = sys.stdout = open(f"said{index}.txt", "w", buffering=1)  # noqa: SIM115
        before()
        main([*argv, "--launcher", "pytorch"] if count > 1 else argv)
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        print(repr(error))
    finally:
        os._exit(status or 0)


def ended(*pids):
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def poison(folder):
    """Other counts in the place of those of every image."""
    for path in Path(folder).glob("*.sqlite"):
        with Records.open(path) as store:
            for run in store.runs():
                for image in list(run.images()):
                    run.clear([image.sample])
                    matrix = [[0] * 21 for _ in range(20)]
                    matrix[0][0] = 1
                    run.add(image.sample, Confusion.of(matrix), image.size)


@pytest.mark.slow
@pytest.mark.parametrize("late", [0, 1])
def test_fresh_with_two_ranks_counts_everything_again(late, arguments, prompt):
    """Whichever comes late: nothing old is in the result, nothing new is lost."""
    evaluate_ = ["voc20", *arguments, "--work-dir", "run", "--results", "run.xlsx"]
    assert ended(start(evaluate_, 0, 2), start(evaluate_, 1, 2)) == [0, 0]
    first = read("run")
    poison("work_dirs/records")
    assert ended(start(evaluate_, 0, 2), start(evaluate_, 1, 2)) == [0, 0]
    assert read("run") != first  # the poison works
    delays = [1.5 * (index == late) for index in range(2)]
    pids = [start([*evaluate_, "--fresh"], i, 2, before=lambda i=i: time.sleep(delays[i])) for i in range(2)]
    assert ended(*pids) == [0, 0]
    assert read("run") == first


@pytest.mark.slow
def test_fresh_shards_forget_their_own_share_alone(arguments, prompt):
    evaluate_ = ["voc20", *arguments, "--work-dir", "run", "--results", "run.xlsx"]
    assert ended(start(evaluate_)) == [0]
    first = read("run")
    poison("work_dirs/records")
    pids = [start([*evaluate_, "--fresh", "--shard", f"{i + 1}/3"]) for i in range(3)]
    assert ended(*pids) == [0, 0, 0]
    assert read("run") == first
    assert counted("work_dirs/records") == len(SHAPES)


@pytest.mark.slow
def test_a_part_that_is_begun_anew_while_another_makes_the_result(arguments, prompt, monkeypatch, capsys):
    """The process that found all images counted finds some gone: it leaves the result to the one that began anew."""
    monkeypatch.setattr("clearclip.evaluation.evaluate._complete", lambda *_: True)
    eval.main(["voc20", *arguments, "--work-dir", "run", "--results", "run.xlsx", "--shard", "1/3"])
    assert "part 1/3 is counted, others are not yet" in "".join(capsys.readouterr())
    assert not Path("run/result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("main", [eval.main, table.main])
def test_what_one_process_cannot_count_is_said_once_by_rank_0(main, arguments, prompt):
    Path("data/VOCdevkit/VOC2012/JPEGImages/b.jpg").write_bytes(b"\xff\xd8\xff\xe0 no picture")
    if main is eval.main:
        argv = ["voc20", *arguments]
    else:
        argv = ["--datasets", "voc20", "--methods", "CLIP", *arguments]
        argv[argv.index("--backbone")] = "--backbones"
    pids = [start(argv, index, 2, main) for index in range(2)]
    statuses = ended(*pids)
    assert statuses[0] == 2
    said = Path("said0.txt").read_text()
    assert said.count("error: ") == 1
    assert "b.jpg" in said
    assert "Traceback" not in said + Path("said1.txt").read_text()
    assert counted("work_dirs/records") in (1, 2)  # the other process may end before its last image


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_job_and_a_second_go_finishes_it(arguments, prompt):
    argv = ["voc20", *arguments, "--work-dir", "run", "--results", "run.xlsx"]

    def dies():
        evaluate.evaluate = lambda *_: os.kill(os.getpid(), signal.SIGKILL)

    began = time.monotonic()
    pids = [start(argv, 0, 2), start(argv, 1, 2, before=dies)]
    assert ended(*pids) == [2, -signal.SIGKILL]
    assert time.monotonic() - began < 30
    assert "process 2 of 2 has given no sign of life" in Path("said0.txt").read_text()
    assert ended(start(argv, 0, 2), start(argv, 1, 2)) == [0, 0]
    assert "counted already" in Path("said0.txt").read_text()
    assert read("run")["images"] == len(SHAPES)


@pytest.mark.slow
def test_a_rank_that_evaluates_something_else_ends_the_job_with_what_differs(arguments, prompt):
    """Rank 0 would wait for its images for half an hour."""
    argv = ["voc20", *arguments, "--work-dir", "run", "--results", "run.xlsx"]
    pids = [start(argv, 0, 2), start([*argv, "--precision", "bf16"], 1, 2)]
    began = time.monotonic()
    assert ended(*pids)[0] == 2
    assert time.monotonic() - began < 60
    said = Path("said0.txt").read_text()
    assert "error: process 2 of 2 evaluates something else (precision is bfloat16 there, float32 here" in said
    assert said.count("error: ") == 1
    assert "Traceback" not in said + Path("said1.txt").read_text()


@pytest.mark.slow
def test_ranks_embed_their_text_once(arguments, prompt):
    """With none kept: one process makes it, and all evaluate the same."""

    def noting():
        embed = text._embed

        def noted(*given):
            with open("embedded.txt", "a") as file:
                file.write("once\n")
            time.sleep(2)  # the others come meanwhile
            return embed(*given) + 1e-5 * torch.randn(20, 1)  # as another processor might

        text._embed = noted

    argv = ["voc20", *arguments, "--work-dir", "run", "--results", "run.xlsx"]
    assert ended(*(start(argv, index, 3, before=noting) for index in range(3))) == [0, 0, 0]
    assert Path("embedded.txt").read_text() == "once\n"
    assert read("run")["images"] == len(SHAPES)
