"""The chat on a terminal: an input line that is always alive, and above it all that was said.

One prompt_toolkit application runs from the first question to the last. What is said is printed above it once and for
all; only the block of the answer that is still open, one line of what is going on, and the input are ever redrawn.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

from prompt_toolkit import PromptSession
from prompt_toolkit.filters import Condition, has_focus
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout import HSplit, Layout, Window
from prompt_toolkit.layout.controls import FormattedTextControl
from prompt_toolkit.output import ColorDepth, Output, create_output
from rich.segment import Segment

from llambo.core.errors import LlamboError
from llambo.core.fusion import Fusion
from llambo.core.harmless import harmless
from llambo.limbot.blocks import Block, Prose
from llambo.limbot.completion import ChatCompleter
from llambo.limbot.dialogue import Dialogue
from llambo.limbot.fusion import MOST_ROWS, rows
from llambo.limbot.live import LiveAnswer
from llambo.limbot.paint import DIM, Line, Painter, fragments
from llambo.limbot.paste import bound_pastes

PROMPT, CONTINUED = "> ", "… "
REDRAW_S = 0.05
"""An answer that grows is redrawn so often, or seldomer where that takes long; a key is shown at once."""
REDRAW_SHARE = 4
"""Painting may take a quarter of the time."""
ECHO_LINES = 12
"""A longer message is shown with its beginning and end alone."""
MAX_COPY_BYTES = 74_994
"""What terminals take of a text for the clipboard."""
_LIVE_ROWS_LEFT = 3  # for the input, the line of what is going on, and one between
_BEGIN_SYNC, _END_SYNC = "\x1b[?2026h", "\x1b[?2026l"  # a terminal that knows them shows all between them at once


class TerminalScreen:
    """`interrupt` is called for Ctrl-C and says whether there was something to stop. `is_raw` shows no Markdown."""

    def __init__(
        self,
        *,
        has_colour: bool,
        is_raw: bool = False,
        history: Sequence[str] = (),
        completer: ChatCompleter | None = None,
        source: Input | None = None,
        output: Output | None = None,
    ) -> None:
        self.interrupt: Callable[[], bool] = lambda: False
        self.is_raw = is_raw
        self._completer = completer
        self._sent: asyncio.Queue[str | None] = asyncio.Queue()
        self._painter = Painter(has_colour=has_colour)
        self._live: Sequence[tuple[str, str]] = ()
        self._busy = ""
        self._votes: Fusion | None = None
        self._is_multi = False
        self._in_sync = False
        self._pause_s = REDRAW_S
        self._redraw: asyncio.TimerHandle | None = None
        source = source or create_input()
        bound_pastes(source, self._too_much)
        self._session: PromptSession[str] = PromptSession(
            [("class:prompt", PROMPT)],
            multiline=True,
            prompt_continuation=lambda width, _number, _wraps: [("class:prompt", CONTINUED.ljust(width)[:width])],
            history=InMemoryHistory(list(history)),
            completer=completer,
            complete_while_typing=False,
            enable_history_search=True,
            enable_suspend=True,
            key_bindings=self._keys(),
            erase_when_done=True,
            color_depth=None if has_colour else ColorDepth.DEPTH_1_BIT,
            input=source,
            output=output or create_output(sys.stdout),
        )
        self._app = self._session.app
        self._output = self._app.output
        self._app.layout = Layout(
            HSplit([self._window(lambda: self._live), self._window(self._busy_line), self._session.layout.container]),
            focused_element=self._session.default_buffer,
        )
        self._app.after_render += lambda _app: self._end_sync()

    def serve(self, dialogue: Dialogue) -> None:
        """Makes Ctrl-C stop what `dialogue` does, and Tab complete what its chat knows."""
        self.interrupt = dialogue.interrupt
        if self._completer is not None:
            self._completer.chat = dialogue.chat

    # --- input ----------------------------------------------------------------------------------------------------

    async def lines(self) -> AsyncIterator[str]:
        """What is sent, until Ctrl-D on an empty line."""
        running = asyncio.ensure_future(self._session.prompt_async(set_exception_handler=False, handle_sigint=False))
        try:
            while True:
                getting = asyncio.ensure_future(self._sent.get())
                await asyncio.wait({running, getting}, return_when=asyncio.FIRST_COMPLETED)
                if not getting.done():
                    getting.cancel()
                    self._check(running)
                    return
                line = getting.result()
                if line is None:
                    return
                yield line
        finally:
            if not running.done():
                if self._app.is_running:
                    self._app.exit(result="")
                else:
                    running.cancel()
            await asyncio.wait({running})
            if self._redraw is not None:
                self._redraw.cancel()

    @staticmethod
    def _check(running: asyncio.Future[str]) -> None:
        """The terminal is gone (EOFError): the end of the input, as any other. Raises: what went wrong otherwise."""
        error = running.exception()
        if error is not None and not isinstance(error, EOFError | OSError):
            raise error

    @property
    def waiting(self) -> int:
        """Messages that were sent and not taken yet."""
        return self._sent.qsize()

    def _keys(self) -> KeyBindings:
        keys = KeyBindings()
        is_typing = has_focus("DEFAULT_BUFFER")
        is_multi = Condition(lambda: self._is_multi)

        @keys.add("enter", filter=is_typing & ~is_multi)
        @keys.add("escape", "enter", filter=is_typing & is_multi)
        def _(event: KeyPressEvent) -> None:
            self._send(event)

        @keys.add("escape", "enter", filter=is_typing & ~is_multi)
        @keys.add("enter", filter=is_typing & is_multi)
        def _(event: KeyPressEvent) -> None:
            event.current_buffer.insert_text("\n")

        @keys.add("c-c", filter=is_typing)
        def _(event: KeyPressEvent) -> None:
            if self.interrupt():
                return
            if event.current_buffer.text:
                event.current_buffer.reset()
            else:
                self.note("Ctrl-D or /exit ends the chat")

        @keys.add("c-d", filter=is_typing & Condition(lambda: not self._session.default_buffer.text))
        def _(_event: KeyPressEvent) -> None:
            self.interrupt()
            self._sent.put_nowait(None)

        return keys

    def _send(self, event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state is not None and buffer.complete_state.current_completion is not None:
            buffer.complete_state = None  # Enter takes what was chosen, and sends nothing yet
            return
        text = buffer.text
        if not text.strip():
            buffer.reset()
            return
        buffer.append_to_history()
        buffer.reset()
        self._sent.put_nowait(text)

    def _too_much(self, limit: int) -> None:
        self.warn(f"what was pasted is longer than {limit:,} characters; attach a file with /file PATH instead")

    # --- what is said ---------------------------------------------------------------------------------------------

    @property
    def width(self) -> int:
        """Columns."""
        return self._output.get_size().columns

    def echo(self, text: str) -> None:
        """The question, with an empty line before it; of a long one the beginning and the end."""
        lines = harmless(text).strip("\n").split("\n")
        if len(lines) > ECHO_LINES:
            half = ECHO_LINES // 2
            lines = [*lines[:half], f"[{len(lines) - 2 * half} more lines]", *lines[-half:]]
        marks = [PROMPT, *[CONTINUED] * (len(lines) - 1)]
        self._print("\n" + "".join(f"\x1b[1m{mark}\x1b[0m{line}\n" for mark, line in zip(marks, lines, strict=True)))

    def note(self, text: str) -> None:
        """Dim lines."""
        self._print("".join(f"\x1b[2m{line}\x1b[0m\n" for line in self._wrapped(text)))

    def warn(self, text: str) -> None:
        """Lines in red."""
        before, after = ("\x1b[31m", "\x1b[0m") if self._painter.has_colour else ("", "")
        self._print("".join(f"{before}{line}{after}\n" for line in self._wrapped(text)))

    def _wrapped(self, text: str) -> Iterator[str]:
        return (line for part in harmless(text).split("\n") for line in self._painter.wrapped(part, self.width))

    def show(self, lines: Sequence[str]) -> None:
        """The lines as they are."""
        self._print("".join(f"{harmless(line)}\n" for line in lines))

    def markdown(self, text: str) -> None:
        """The text, rendered."""
        writer = LiveAnswer(self)
        writer.feed(text)
        writer.close()

    def answer(self) -> LiveAnswer:
        """An answer that is shown as it grows."""
        return LiveAnswer(self)

    def busy(self, text: str) -> None:
        """One dim line above the input."""
        if text != self._busy:
            self._busy = harmless(text)
            self._app.invalidate()

    def votes(self, fusion: Fusion | None) -> None:
        """The last votes above the input, a dim line each; drawn again as they come, printed never."""
        self._votes = fusion
        self.draw_live(None if fusion is None else self._vote_lines)

    def _vote_lines(self) -> list[Line]:
        if self._votes is None:
            return []
        return [[Segment(row, DIM)] for row in rows(self._votes, self.width - 1, most=MOST_ROWS)]

    def copy(self, text: str) -> None:
        """Gives the text to the terminal's clipboard (OSC 52), which works over SSH too."""
        data = text.encode()
        if len(data) > MAX_COPY_BYTES:
            raise LlamboError(f"the text has {len(data)} bytes and a terminal's clipboard takes {MAX_COPY_BYTES}")
        self._output.write_raw(f"\x1b]52;c;{base64.b64encode(data).decode()}\x07")
        self._output.flush()

    def toggle_multiline(self) -> bool:
        """Switches what Enter does."""
        self._is_multi = not self._is_multi
        return self._is_multi

    def clear(self) -> None:
        """An empty screen; what has scrolled away stays."""
        if self._app.is_running:
            self._app.renderer.clear()

    # --- drawing --------------------------------------------------------------------------------------------------

    def print_lines(self, lines: Sequence[Line]) -> None:
        """Prints painted lines above the input, for good."""
        self._print(self._painter.ansi(lines))

    def paint(self, block: Block) -> list[Line]:
        """A block as lines for this width."""
        if self.is_raw and isinstance(block, Prose):
            return self._painter.plain(block.text)
        return self._painter.lines(block, self.width)

    def draw_live(self, lines: Callable[[], Sequence[Line]] | None) -> None:
        """What stands between all that was said and the input; asked for again after a while, not with every token."""
        if lines is None:
            self._live = ()
            if self._redraw is not None:
                self._redraw.cancel()
                self._redraw = None
            self._app.invalidate()
        elif self._redraw is None:
            self._redraw = asyncio.get_running_loop().call_later(self._pause_s, self._draw, lines)

    def _draw(self, lines: Callable[[], Sequence[Line]]) -> None:
        self._redraw = None
        size = self._output.get_size()
        typed = self._session.default_buffer.document.line_count
        room = max(1, size.rows - _LIVE_ROWS_LEFT - min(typed, size.rows // 2))
        started = time.perf_counter()
        self._live = list(fragments(lines()[-room:]))
        self._pause_s = max(REDRAW_S, REDRAW_SHARE * (time.perf_counter() - started))
        self._app.invalidate()

    def _print(self, text: str) -> None:
        if not text:
            return
        output = self._output
        if not self._app.is_running:
            output.write_raw(text.replace("\n", "\r\n"))
            output.flush()
            return
        if not self._in_sync:
            self._in_sync = True
            output.write_raw(_BEGIN_SYNC)
        self._app.renderer.erase()
        output.write_raw(text.replace("\n", "\r\n"))
        output.flush()
        self._app.renderer.request_absolute_cursor_position()
        self._app.invalidate()

    def _end_sync(self) -> None:
        if self._in_sync:
            self._in_sync = False
            self._output.write_raw(_END_SYNC)
            self._output.flush()

    def _busy_line(self) -> Sequence[tuple[str, str]]:
        waiting = f" · {self.waiting} waiting" if self.waiting else ""
        return [("class:busy", self._busy + waiting)] if self._busy else []

    @staticmethod
    def _window(content: Callable[[], Sequence[tuple[str, str]]]) -> Window:
        """A window that is as high as what is in it."""
        control = FormattedTextControl(lambda: list(content()), show_cursor=False)
        return Window(control, height=lambda: _rows(content()), dont_extend_height=True, wrap_lines=False)


def _rows(content: Sequence[tuple[str, str]]) -> int:
    return sum(text.count("\n") for _, text in content) + 1 if content else 0
