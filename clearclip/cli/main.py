"""`clearclip COMMAND …`, and `python -m clearclip COMMAND …`."""

import importlib
import sys

import clearclip
from clearclip.errors import UserError, program

COMMANDS = {  # each a module of this package
    "segment": "segment pictures into anything that you can name",
    "app": "serve a page on this machine: pictures, names, regions and why",
    "analyze": "figures and arrays of why a patch gets its class",
    "features": "keep patch features of pictures, to ask for any names later",
    "eval": "evaluate a method on one benchmark and record the result",
    "table": "evaluate methods on benchmarks and print one table",
    "calibrate": "fit class offsets and a threshold on labelled images",
    "merge": "merge what shards or machines have counted, and say what is missing",
    "export": "write a method and a vocabulary into an ONNX file",
    "names": "which names are confused, which synonyms help, what has no name",
    "workbook": "make results.xlsx anew from the result.json of each run",
    "report": "write one page of HTML on runs, with intervals, classes, confusions and images",
    "prefetch": "fetch weights and text embeddings for nodes without network",
}


def usage() -> str:
    commands = "\n".join(f"  {name:9} {summary}" for name, summary in COMMANDS.items())
    return f"usage: clearclip COMMAND ...\n\n{commands}\n\n`clearclip COMMAND --help` says more."


@program
def main(argv: list[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
    elif command == "--version":
        print(clearclip.__version__)
    elif command in COMMANDS:
        importlib.import_module(f"clearclip.cli.{command}").main(rest, prog=f"clearclip {command}")
    else:
        raise UserError(f"no command {command!r}; use one of {', '.join(COMMANDS)}")
