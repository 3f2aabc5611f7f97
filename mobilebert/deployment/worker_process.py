"""Start a process for each model that is timed, and talk to it over a pipe."""

from __future__ import annotations

from contextlib import suppress
from multiprocessing.connection import Connection

from mobilebert.util.errors import UserError, one_line
from mobilebert.util.packages import not_installed


class Worker:
    """A process of `latency_worker` and the pipe to it."""

    def __init__(self, processes, name: str, task: str, arguments: tuple):
        self.name = name
        self._connection, theirs = processes.Pipe()
        self._process = processes.Process(target=work, args=(theirs, task, arguments), daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_) -> None:
        self._connection.close()  # tells the process to end
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def ask(self, question: str):
        with suppress(BrokenPipeError):  # the process is dead: answer() reports it
            self._connection.send(question)
        return self.answer()

    def answer(self):
        """Return the next answer. Raises UserError if the process failed or is dead."""
        try:
            kind, value = self._connection.recv()
        except (EOFError, ConnectionResetError):
            raise UserError(f"{self.name}: its process ended without an answer (out of memory?)") from None
        if kind == "error":
            raise UserError(value if value.startswith(self.name) else f"{self.name}: {value}")
        return value


def work(connection: Connection, task: str, arguments: tuple) -> None:
    """Run a task of `latency_worker`: the entry point of every process.

    The module is imported here because its imports are slow and the parent does not need them.
    """
    try:
        from mobilebert.deployment import latency_worker

        getattr(latency_worker, task)(connection, *arguments)
    except EOFError:
        pass  # the parent is done, or gone
    except ModuleNotFoundError as error:
        connection.send(("error", str(not_installed(error))))
    except UserError as error:
        connection.send(("error", str(error)))
    except Exception as error:
        connection.send(("error", one_line(error)))
