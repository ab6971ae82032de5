"""Blocking calls beside the event loop that nobody has to wait for.

`asyncio.to_thread` is right for work that ends soon: the loop's executor is joined when the program ends. A download
that stalls would keep it from ending.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from typing import TypeVar

T = TypeVar("T")


async def run_abandonable(call: Callable[[], T], *, name: str) -> T:
    """Runs `call` in a daemon thread called `name` and returns what it returns, or raises what it raises.

    Being cancelled stops the waiting, not the thread: `call` has to notice by itself, or ends with the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def work() -> None:
        try:
            result = call()
        except BaseException as error:  # whatever it is, whoever waits for it gets it
            tell(partial(done.set_exception, error))
        else:
            tell(partial(done.set_result, result))

    def tell(settle: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(lambda: None if done.done() else settle())

    threading.Thread(target=work, name=name, daemon=True).start()
    return await done
