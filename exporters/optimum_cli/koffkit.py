"""`optimum-cli export koffkit RUN`: the exporters of koffkit under optimum's command line.

optimum finds subcommands by files in its namespace `optimum.commands.register` and in no other way, so this
one file is installed there. It only translates arguments; `koffkit export` does the work.
"""

from __future__ import annotations

from argparse import ArgumentParser

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class KoffkitExportCommand(BaseOptimumCLICommand):  # type: ignore[misc]  # optimum ships no types
    """Slice a finished koffkit run into artefacts."""

    COMMAND = CommandInfo(
        name="koffkit", help="Slice a finished koffkit run into a backbone and memory bundles."
    )

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        parser.add_argument(
            "run", nargs="?", help="run folder (default: the newest finished run under ./runs)"
        )
        parser.add_argument("--format", help="exporter, as installed (default: as the recipe says, else hf)")
        parser.add_argument("--output", help="folder to make (default: exports/RUN-FORMAT)")
        parser.add_argument("--json", action="store_true", help="one JSON object on stdout")

    def run(self) -> None:
        from koffkit.cli import main

        arguments = ["export", *(["--format", self.args.format] if self.args.format else [])]
        arguments += [self.args.run] if self.args.run else []
        arguments += ["--output", self.args.output] if self.args.output else []
        main(arguments + (["--json"] if self.args.json else []))


REGISTER_COMMANDS = [(KoffkitExportCommand, ExportCommand)]
