"""Long work shows where it is, and can be stopped between two steps."""

import signal
import threading
import warnings
from contextlib import contextmanager


def bar(total, *, start=0, what="", show=True):
    """A tqdm progress bar (a widget in notebooks), or a silent stand-in where tqdm is missing."""
    if not show:
        return Silent()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")               # tqdm's advice to install ipywidgets
            from tqdm.auto import tqdm
    except ImportError:
        return Silent()
    return tqdm(total=total, initial=start, desc=what, dynamic_ncols=True)


class Silent:
    """What of tqdm is used here, saying nothing."""

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def update(self, n=1):
        pass

    def set_postfix_str(self, text, refresh=True):
        pass


@contextmanager
def interruptible():
    """Catch Ctrl-C inside the block: yields a function that says whether it came.

    The second Ctrl-C is KeyboardInterrupt at once, as ever. Outside the main thread, where signals
    never arrive, nothing is caught.
    """
    pressed = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield pressed.is_set
        return

    def note(signum, frame):
        if pressed.is_set():
            raise KeyboardInterrupt
        pressed.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)
