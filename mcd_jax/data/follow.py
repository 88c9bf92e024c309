"""What every worker process of this package does beside its work."""
import multiprocessing
import os
import threading


def follow_parent():
    """Ends this process when the one that started it is gone: it would wait for more work for ever."""
    def follow():
        multiprocessing.parent_process().join()
        os._exit(1)
    threading.Thread(target=follow, daemon=True).start()
