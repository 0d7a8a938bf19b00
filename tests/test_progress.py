"""Long work: the bar counts, and Ctrl-C waits for the end of a step, once."""

import io
import signal
import sys
import threading

import pytest

from tinydiff.progress import Silent, bar, interruptible


def ctrl_c():
    signal.raise_signal(signal.SIGINT)


def test_the_first_ctrl_c_is_noted_and_the_second_raises():
    with interruptible() as pressed:
        assert not pressed()
        ctrl_c()
        assert pressed()
        with pytest.raises(KeyboardInterrupt):
            ctrl_c()


def test_after_the_block_ctrl_c_means_what_it_meant_before():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(ZeroDivisionError), interruptible():
        1 / 0
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()


def test_blocks_do_not_remember_each_other():
    with interruptible():
        ctrl_c()
    with interruptible() as pressed:
        assert not pressed()


def test_outside_the_main_thread_the_handler_is_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work():
        with interruptible() as pressed:
            seen.append((pressed(), signal.getsignal(signal.SIGINT) is before))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, True)]


def test_a_bar_counts_from_where_the_work_goes_on(monkeypatch):
    pytest.importorskip("tqdm")
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with bar(10, start=4, what="train") as progress:
        progress.update()
        progress.set_postfix_str("loss 0.5", refresh=False)
        assert (progress.n, progress.total) == (5, 10)
    assert "train:  50%" in sys.stderr.getvalue()
    assert "loss 0.5" in sys.stderr.getvalue()


def test_a_bar_that_is_not_to_be_shown_says_nothing(capsys):
    with bar(10, show=False) as progress:
        progress.update(3)
        progress.set_postfix_str("loss 0.5", refresh=False)
    assert capsys.readouterr() == ("", "")


def test_without_tqdm_the_work_goes_on_in_silence(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)    # importing it raises ImportError
    with bar(10, what="train") as progress:
        progress.update()
    assert isinstance(progress, Silent)
    assert capsys.readouterr() == ("", "")
