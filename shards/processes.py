"""Worker processes that do not outlive the one that started them."""

import os
import threading
import time


def end_with(parent: int) -> None:
    """End this process when `parent`, which started it, is gone; nothing else tells it of a
    kill -9."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
